"""A driver's flags, each declared once: a field of a dataclass, annotated with its typer option.

    @dataclass(kw_only=True)
    class Settings(Flags):
        ctx: cli.CtxFlag = 2048

        @cached_property
        def spec(self) -> ModelSpec: ...    # what flags come to, worked out when it is first read

    command = make_command(main, Settings, expected="about 30 s on two CPU cores")

The command line, its help and the flags of child processes are all made from those fields: `from_flags` parses,
`to_flags` spells the flags out again.
"""

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from typing import Any, ClassVar, Self, TypeVar

import typer


@dataclass(kw_only=True)
class Flags:
    """The flags of one run of a driver. Fields that are no flags are declared with `init=False`."""

    NOT_SHARED: ClassVar[frozenset[str]] = frozenset(
        {"json", "csv", "md", "plot", "trace", "list_", "plugin_timeout_s", "plugin_journal"}
    )
    """Flags of one process alone: what it writes, lists and reports to. They are not passed on to a child process."""

    BARE: ClassVar[dict[str, str]] = {}
    """Flags that can be given without a value, and the value that they have then."""

    @classmethod
    def from_flags(cls, flags: Sequence[str] = ()) -> Self:
        """The settings that a command line gives. Raises what typer raises for flags that it cannot parse, and
        UsageError for a value that is not allowed."""
        kind: Any = cls
        found = _parser(kind).main(args=list(flags), standalone_mode=False)
        assert isinstance(found, cls)
        return found

    def to_flags(self, without: Collection[str] = ()) -> list[str]:
        """A command line that gives these settings, every flag spelled out, less the fields named in `without`."""
        flags: list[str] = []
        kind: Any = type(self)
        for parameter in _parser(kind).params:
            value = getattr(self, parameter.name)
            if parameter.name in without:
                continue
            if parameter.param_type_name == "argument":
                flags += map(str, value if parameter.nargs != 1 else [value])
            elif parameter.is_flag:
                flags += parameter.opts[:1] if value else parameter.secondary_opts[:1]
            elif parameter.multiple:
                flags += [f"{parameter.opts[0]}={one}" for one in value or ()]
            else:
                flags.append(f"{parameter.opts[0]}={value}")
        return flags

    def shared_flags(self, without: Collection[str] = ()) -> list[str]:
        """to_flags() for a child process: less NOT_SHARED, and less the fields named in `without`."""
        return self.to_flags(self.NOT_SHARED | set(without))


S = TypeVar("S", bound=Flags)


def _flag_fields(of: type[Flags]) -> list[Field[Any]]:
    """The fields that are flags, those of the class itself before those it inherits: the order of --help."""
    own = {name: depth for depth, base in reversed([*enumerate(of.__mro__)]) for name in inspect.get_annotations(base)}
    return sorted((field for field in fields(of) if field.init), key=lambda field: own[field.name])


def make_command(main: Callable[[S], int], of: type[S], expected: str = "") -> Callable[..., int]:
    """`main` as the function that typer makes a command of, with one parameter a flag. `expected` is a measured
    duration, which --help ends with."""

    def run(**values: Any) -> int:
        return main(of(**values))

    run.__doc__ = (inspect.getdoc(main) or "") + (f"\n\nExpected duration: {expected}." if expected else "")
    run.__name__ = main.__name__
    parameters = []
    for field in _flag_fields(of):
        default = field.default
        if field.default_factory is not MISSING:
            default = field.default_factory()
        elif default is MISSING:
            default = inspect.Parameter.empty
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=field.type)
        )
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.bare = of.BARE  # type: ignore[attr-defined]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _same(settings: S) -> S:
    return settings


@cache
def _parser(of: Any) -> Any:
    """Typer's command whose result is the settings. Of a click of typer's own, which has no public type."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(make_command(_same, of))
    return typer.main.get_command(app)
