# make layer                 set up, build, run the main job
# make test                  set up, build, lint, run every test             (TEST_JOBS=2)
# make build PYTHON=python3  build in place for an interpreter that has what it needs; downloads nothing
# make fuzz                  bad command lines and files for every driver    (ARGS="--only=^compare --jobs=2")
# make mutations             do the tests notice a kernel without one of its waits, barriers, fences?  (ARGS=--only=rmsnorm)
# make fleet-soak            a sweep over three local Ray nodes, which are killed meanwhile: minutes   (ARGS="--cells=200")
#
# make nsys                  a timeline of bench.layer on a GPU         (ARGS="--model=llama-3.1-8b")
# make ncu OP=gemv           the counters of one op's kernels on a GPU  (ARGS="--model=llama-3.1-8b")
# make sanitize              compute-sanitizer's four tools over the GPU tests
# make gpu-check             everything that needs a GPU: tests, benchmarks, sanitizer (OUT=bench/results)
# make gpu-peers             FlashAttention, FlashInfer and SDPA on a GPU: attention alone, the stack (OUT=bench/results)
# make gpu-int4              4-bit kernels on a GPU: ours and the libraries' that are there (OUT=bench/results)
# make report                tables and pictures of the committed result documents: docs/report (ARGS="--price=H200=3.99")
# make resources             registers, shared memory and spills of every kernel  (ARCHITECTURES="100 110 120": of other cards)
#
# Without PYTHON everything happens in .venv. Every target can be run again, also after an interrupt.

ifdef PYTHON
  python := $(PYTHON)
  setup :=
  test_setup :=
  build_command = $(python) setup.py build_ext --inplace
else
  python := .venv/bin/python
  setup := .venv/.complete
  test_setup := .venv/.complete-test
  build_command = $(python) -m pip install --quiet --no-deps --no-build-isolation --editable .
  export PATH := $(CURDIR)/.venv/bin:$(PATH)
endif

cxx_sources = $(shell git ls-files --cached --others --exclude-standard 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' \
                                    'tests/*.cpp' 'tests/*.h' 'tests/*.cu' 'tests/*.cuh' 'examples/*.cu')
build_folder = build/$(shell $(python) -c 'import sysconfig; print(sysconfig.get_config_var("SOABI"))')

.PHONY: layer test native-tests fuzz mutations fleet-soak build build-tests lint format clean nsys ncu sanitize gpu-check \
  gpu-peers gpu-int4 report resources
.DELETE_ON_ERROR:

layer: build
	$(python) -m bench.layer

# Whole files side by side, so that what a file makes once is made once, the longest first (tests/conftest.py); torch's
# threads would only be in one another's way. The lint and the native tests take what these leave of the cores, which is
# a tenth. The controls test the timer itself, and come alone.
TEST_JOBS ?= 2
test: build-tests
	OMP_NUM_THREADS=1 $(python) cmake/beside.py nice $(MAKE) --no-print-directory --output-sync lint native-tests -- \
	  $(python) -m pytest --numprocesses=$(TEST_JOBS) --dist=loadfile --no-loadscope-reorder \
	  --ignore=tests/package/test_controls.py
	$(python) -m pytest tests/package/test_controls.py

native-tests:
	ctest --test-dir $(build_folder) --output-on-failure

# Each case in a process of its own; tests/bench/test_fuzz.py runs most of those that are to be refused in one.
fuzz: build $(test_setup)
	PYTHONPATH=tests $(python) -m fuzz --jobs=$(TEST_JOBS) $(ARGS)

# Compiles and tests a kernel anew for each wait, barrier and fence: hours.
mutations: build-tests
	PYTHONPATH=tests $(python) -m mutations $(ARGS)

# Needs Ray (launchtax[ray]).
fleet-soak: build $(test_setup)
	PYTHONPATH=tests $(python) -m fleet_soak $(ARGS)

build: $(setup)
	$(build_command)

# With csrc/simt and tests/native. From then on `make build` keeps them up to date too.
with_tests = CMAKE_ARGS="-DBUILD_TESTING=ON $$CMAKE_ARGS"
build-tests: $(setup) $(test_setup)
	$(with_tests) $(build_command)

# A stamp comes last, so that an interrupted set-up is taken up again. Python compiles what it imports when it does:
# compiling all that pip installs would take longer than the rest of the installation. For a build the kernels, which
# need nothing but its tools, are compiled while pip, on one core, installs torch.
# What tests need beyond that comes while they are compiled.
compile = $(python) cmake/beside.py $(python) setup.py --quiet build_ext --inplace
build build-tests: beside = $(compile) --kernels-only --
build-tests: test_beside = $(with_tests) $(compile) --
pip_install = .venv/bin/python -m pip install --quiet --no-compile --requirement
.venv/.complete: requirements.txt requirements-build.txt
	test -x .venv/bin/python || python3 -m venv --clear .venv
	$(pip_install) requirements-build.txt
	$(beside) $(pip_install) requirements.txt
	touch $@

.venv/.complete-test: .venv/.complete requirements-dev.txt
	$(test_beside) $(pip_install) requirements-dev.txt
	touch $@

lint: $(setup) $(test_setup)
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
	clang-format --dry-run --Werror $(cxx_sources)

format: $(setup) $(test_setup)
	$(python) -m ruff check --fix .
	$(python) -m ruff format .
	clang-format -i $(cxx_sources)

# NVIDIA's tools, for those who have them.
require = command -v $(1) > /dev/null || { echo "make $@: $(1) is not on PATH: it comes with $(2)" >&2; exit 1; }

nsys: build
	@$(call require,nsys,NVIDIA Nsight Systems)
	nsys profile --trace=cuda,nvtx --cuda-graph-trace=node --force-overwrite=true --output=layer \
	  $(python) -m bench.layer --device=cuda --steps=5 $(ARGS)

# Clocks as they come: locked to the base clock, a kernel would be another than the one that was timed. The op's NVTX
# range picks its kernels out.
OP ?= gemv
ncu: build
	@$(call require,ncu,NVIDIA Nsight Compute)
	ncu --clock-control none --set full --import-source yes --nvtx --nvtx-include "launchtax@$(OP)/" \
	  --launch-skip 4 --launch-count 8 --force-overwrite --export $(OP) \
	  $(python) -m bench.op --device=cuda --op=$(OP) --mode=native --steps=2 --warmup=0 --repeats=4 $(ARGS)

# A quick subset: the smallest shapes of every op, and the layer of the tiny model. The tools run side by side.
SANITIZED ?= (rmsnorm and (8- or 520) or gemv and (520 or 4104) or (int4_gemv or int4_swiglu) and 544 and (1-bf16 or 3-bf16) or \
  argmax and 520 or gqa_decode and lengths0 or layer and tiny and not 64) and not fp16
SANITIZER_TOOLS ?= memcheck racecheck synccheck initcheck
sanitize: build
	@$(call require,compute-sanitizer,the CUDA toolkit)
	$(MAKE) --no-print-directory --keep-going --output-sync --jobs=4 $(SANITIZER_TOOLS:%=sanitize-%)

sanitize-%:
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $* --error-exitcode 1 \
	  $(python) -m pytest -q -x tests/gpu/test_cuda.py -k "$(SANITIZED)"

# From the build's own commands. They are all that is needed of it: a build that fails for a spill leaves them too.
resources: $(setup)
	@if test -f $(build_folder)/build.ninja -o -f $(build_folder)/Makefile; then cmake $(build_folder) > /dev/null; \
	else $(build_command); fi
	$(python) cmake/kernel_resources.py $(build_folder)/compile_commands.json $(ARCHITECTURES)

OUT ?= bench/results
gpu-check: build
	bash bench/gpu_check.sh $(OUT) $(python)

gpu-peers: build
	bash bench/gpu_peers.sh $(OUT) $(python)

gpu-int4: build
	bash bench/gpu_int4.sh $(OUT) $(python)

# bench/results/ab has both sides of comparisons, of which docs/tried.md has the outcome.
report: build
	$(python) -m bench.report bench/results --exclude=ab --out=docs/report --no-svg \
	  --title="launchtax: measured on an H200 and an H100" $(ARGS)
	$(python) -m bench.report.pages

clean:
	rm -rf build dist *.egg-info pykernels/*.so
