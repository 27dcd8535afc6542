"""Flags with what is none of their values, flags that contradict one another, environments."""

from collections.abc import Iterator

from fuzz.case import AB, ATTENTION, ENDS, LAYER, OK, Case, plain

NOT_AN_INTEGER = ["", "x", "1.5", "nan", "1e3", "0x10", "--", "9" * 5000]
OUT_OF_RANGE = ["-1", "-9223372036854775809", "9" * 30]
BAD_WORDS = ["", " ", ",", "é", "\u202etxet", "a" * 100_000, "../../etc/passwd", "%s%n", "\x1b[2J", "\udcff"]


def flags() -> Iterator[Case]:
    """Every kind of flag, with what is none of its values."""
    numbers = {
        "layer": ["--ctx", "--batch", "--warmup", "--steps", "--repeats", "--threads", "--seed", "--group", "--layer"],
        "op": ["--aa", "--batch"],
        "attention": ["--sessions", "--calls"],
        "stack": ["--compile-jobs"],
        "step": ["--layers"],
        "ab": ["--sessions"],
        "int4": ["--group"],
        "inside": ["--steps", "--repeats"],
    }
    for driver, names in numbers.items():
        for name in names:
            # Not every value of every flag: the checks are shared. All values of --ctx, two of the others.
            values = NOT_AN_INTEGER + OUT_OF_RANGE if (driver, name) == ("layer", "--ctx") else ["x", "9" * 30]
            for value in values:
                shown = value if len(value) < 20 else f"{value[:4]}...{len(value)}"
                yield Case(f"flag/{driver}{name}={shown}", driver, plain("--model=tiny", f"{name}={value}"))
    for driver, name in [
        ("attention", "--limit-s"),
        ("stack", "--limit-s"),
        ("ab", "--limit-s"),
        ("layer", "--plugin-timeout-s"),
        ("layer", "--spec-gbs"),
        ("step", "--memory-limit-gb"),
    ]:
        for value in ("nan", "inf", "-1", "1e400", "x", ""):
            yield Case(f"flag/{driver}{name}={value}", driver, plain("--model=tiny", f"{name}={value}"))
    for driver, name in [("compare", "--threshold"), ("compare", "--alpha")]:
        for value in ("nan", "inf", "-1", "1e400", "x"):
            yield Case(f"flag/{driver}{name}={value}", driver, plain("a.json", "b.json", f"{name}={value}"))
    words = [
        ("layer", "--backend"),
        ("op", "--op"),
        ("attention", "--heads"),
        ("int4", "--kernel"),
        ("ab", "--a"),
        ("step", "--arm"),
        ("sweep", "--arm"),
        ("int4", "--predict"),
        ("layer", "--model"),
        ("op", "--ctx"),
        ("stack", "--attention"),
        ("inside", "--mode"),
        ("ab", "--rule"),
    ]
    empty_is_default = {
        ("attention", "--heads"),
        ("step", "--arm"),
        ("sweep", "--arm"),
        ("int4", "--predict"),
        ("ab", "--rule"),
    }
    for index, (driver, name) in enumerate(words):
        values = BAD_WORDS if index == 0 else [BAD_WORDS[index % len(BAD_WORDS)], "\udcff\udc80", ",,"]
        for value in values:
            if not value.strip() and (driver, name) in empty_is_default:
                continue
            shown = ascii(value)[1:-1] if len(value) < 30 else f"a...{len(value)}"
            more = {"sweep": ["--out={w}/out"], "attention": [*ATTENTION[1:], "--sessions=0"]}.get(
                driver, ["--model=tiny"]
            )
            yield Case(f"flag/{driver}{name}={shown}", driver, plain(*more, f"{name}={value}"), may_leave="out")
    for driver, arguments in [
        ("layer", ["--group=64"]),
        ("layer", ["--asymmetric"]),
        ("layer", ["--layer=1"]),
        ("layer", ["--backend=marlin", "--quant=none"]),
        ("layer", ["--trace={w}/t.json"]),
        ("op", ["--aa=2", "--json={w}/x.json"]),
        ("op", ["--op=null", "--csv={w}/x.csv"]),
        ("op", ["--backend=torch", "--mode=native"]),
        ("op", ["--op=spin", "--duration-us=1,,2"]),
        ("op", ["--op=spin", "--duration-us=nan"]),
        ("op", ["--op=spin", "--duration-us=1e9"]),
        ("attention", ["--resume"]),
        ("attention", ["--sessions=0", "--keep={w}/k"]),
        ("attention", ["--gate", "--plot={w}/x.png"]),
        ("attention", ["--heads=64/7"]),
        ("attention", ["--heads=0/0"]),
        ("attention", ["--aa=flashinfer", "--backend=native"]),
        ("attention", ["--ctx=131073"]),
        ("stack", ["--attention=native", "--compiled=reduce-overhead"]),
        ("int4", ["--validate", "--md={w}/x.md"]),
        ("int4", ["--what=shapes", "--predict=l4"]),
        ("int4", ["--validate", "--group=33"]),
        ("int4", ["--group=384"]),
        ("step", ["--ctx=32768"]),
        ("step", ["--arm=native:graph"]),
        ("step", ["--arm=sdpa/block:eager"]),
        ("ab", ["--a=native:eager", "--arms=sdpa:eager"]),
        ("ab", ["--a=native:graph"]),
        ("ab", ["--sessions=0"]),
        ("tune", ["--margin=100%"]),
        ("tune", ["--ops=rmsnorm"]),
        ("tune", ["--ctx=0"]),
        ("tune", ["--plans={w}/none/plans.json"]),
        ("tune", ["--plans={w}/x.json", "--json={w}/x.json"]),
        ("sweep", []),
        ("sweep", ["--out="]),
        ("sweep", ["--out={w}/o", "--ctx=1000000"]),
        ("sweep", ["--out={w}/o", "--batch=0"]),
        ("sweep", ["--out={w}/o", "--layers=99"]),
        ("compare", []),
        ("compare", ["a"]),
        ("compare", ["a", "b", "c"]),
        ("compare", ["a", "b", "--correction=none"]),
        ("report", []),
        ("report", ["{w}"]),
        ("report", ["{w}", "--price=L4"]),
        ("report", ["{w}", "--price=L4=nan"]),
        ("report", ["{w}", "--price==1"]),
        ("report", ["{w}", "--price=L4=-1"]),
        ("report", ["{w}", "--price=L4=1e999"]),
        ("inside", ["--device=cpu"]),
        ("inside", ["--device=cuda"]),
        ("doctor", ["extra"]),
    ]:
        yield Case(f"conflict/{driver} {' '.join(arguments)}", driver, plain(*arguments))
    yield Case("twice/layer the last of a repeated flag", "layer", plain(*LAYER, "--ctx=1", "--ctx=0"))
    yield Case("twice/layer one backend twice", "layer", plain(*LAYER, "--backend=native,native"), OK)
    yield Case("environment/threads", "layer", plain(*LAYER), env={"PYKERNELS_NUM_THREADS": "many"})
    yield Case("environment/threads huge", "layer", plain(*LAYER), env={"PYKERNELS_NUM_THREADS": "9" * 30})
    yield Case("environment/isa", "layer", plain(*LAYER), env={"PYKERNELS_CPU_ISA": "mmx"})
    yield Case("environment/isa of doctor", "doctor", plain(), env={"PYKERNELS_CPU_ISA": "mmx"})
    yield Case("environment/no TMPDIR", "ab", plain(*AB), ENDS, env={"TMPDIR": "/nonexistent"})
    for columns in ("0", "1", "-5", "x", "9" * 12):
        yield Case(f"environment/COLUMNS={columns}", "doctor", plain(), OK, env={"COLUMNS": columns})
    yield Case("environment/ascii stdout, layer", "layer", plain(*LAYER), OK, env={"PYTHONIOENCODING": "ascii"})
    yield Case("environment/ascii stdout, doctor", "doctor", plain(), OK, env={"PYTHONIOENCODING": "ascii"})
    for stdout in ("full", "closed", "none"):
        yield Case(f"stdout/{stdout}, doctor", "doctor", plain("--json={w}/x.json"), ENDS, "x.json", stdout=stdout)
        yield Case(
            f"stdout/{stdout}, layer", "layer", plain(*LAYER, "--json={w}/x.json"), ENDS, "x.json", stdout=stdout
        )
