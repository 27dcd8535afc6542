# make layer                 set up, build, run the main job
# make test                  set up, build, lint, run every test
# make build PYTHON=python3  build in place for an interpreter that has what it needs; downloads nothing
#
# Without PYTHON everything happens in .venv. Every target can be run again, also after an interrupt.

ifdef PYTHON
  python := $(PYTHON)
  setup :=
  build_command = $(python) setup.py build_ext --inplace
else
  python := .venv/bin/python
  setup := .venv/.complete
  build_command = $(python) -m pip install --quiet --no-deps --no-build-isolation --editable .
  export PATH := $(CURDIR)/.venv/bin:$(PATH)
endif

cxx_sources = $(shell git ls-files --cached --others --exclude-standard 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' \
                                    'tests/*.cpp' 'tests/*.h' 'tests/*.cu')
build_folder = build/$(shell $(python) -c 'import sysconfig; print(sysconfig.get_config_var("SOABI"))')

.PHONY: layer test build lint format clean
.DELETE_ON_ERROR:

layer: build
	$(python) -m bench.layer

test: build lint
	ctest --test-dir $(build_folder) --output-on-failure
	$(python) -m pytest

build: $(setup)
	$(build_command)

# The stamp comes last, so that an interrupted set-up is taken up again.
.venv/.complete: requirements-dev.txt
	test -x .venv/bin/python || python3 -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --requirement requirements-dev.txt
	touch $@

lint: $(setup)
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	clang-format --dry-run --Werror $(cxx_sources)

format: $(setup)
	$(python) -m ruff check --fix .
	$(python) -m ruff format .
	clang-format -i $(cxx_sources)

clean:
	rm -rf build dist *.egg-info pykernels/*.so
