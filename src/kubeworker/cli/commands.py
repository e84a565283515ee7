"""The commands as data, and the text of `kubeworker --help`. Imports nothing: it costs no more than Python itself."""

HELP = "Turns plain Linux machines into Kubernetes worker nodes over SSH."

EPILOGUE = (
    "Exit codes: 0 done or nothing to do, 1 failed, 2 changes pending (plan), 3 wrong input, "
    "4 some nodes unreachable. KUBEWORKER_DEBUG=1 shows where an error came from."
)

COMMANDS = {
    "init": ("init:init", "Write a cluster.yaml, also from the guide's environment.sh."),
    "artifacts": ("artifacts:app", "Get, check and pack the binaries."),
    "render": ("render:render", "Write every file of every node, offline."),
    "preflight": ("preflight:preflight", "Check the nodes before anything is changed."),
    "plan": ("plan:plan", "Show what would change, and why."),
    "apply": ("apply:apply", "Show the plan, ask, and do exactly that."),
    "verify": ("verify:verify", "Prove on the live cluster that everything works."),
    "status": ("status:status", "What has changed since the last apply, and who has changed it."),
    "explain": ("explain:explain", "Why a path, key, unit, check, action or error is as it is."),
    "csr": ("csr:app", "Certificate requests of nodes: list them, approve by the rules."),
    "token": ("token:app", "Bootstrap tokens: list them, take them back."),
    "job": ("job:app", "Apply from inside the cluster, in parts: an Indexed Job."),
    "lab": ("lab:app", "A local lab of real machines with a real control plane."),
    "drill": ("drill:app", "Failures on purpose, on a lab, and what they cost."),
}
"""Command -> where it lies in this package, and its line in --help."""

_OPTIONS = {
    "--help, -h": "This text; `kubeworker COMMAND --help`: a command's own.",
    "--version": "The version.",
    "--install-completion": "Set up completion for your shell.",
}

_WIDTH = 80


def asks_for_overview(tokens: list[str]) -> bool:
    """Whether nothing but the overview is wanted."""
    return tokens in ([], ["--help"], ["-h"])


def overview() -> str:
    """What `kubeworker --help` prints."""
    lines = {name: summary for name, (_, summary) in COMMANDS.items()}
    return "\n".join(
        (
            "Usage: kubeworker COMMAND [OPTIONS]",
            "",
            HELP,
            "",
            "Commands:",
            *_table(lines),
            "",
            "Options:",
            *_table(_OPTIONS),
            "",
            *_wrapped(EPILOGUE.split()),
            "",
        )
    )


def _table(lines: dict[str, str]) -> list[str]:
    width = max(map(len, lines))
    return [f"  {name:<{width}}  {summary}" for name, summary in lines.items()]


def _wrapped(words: list[str]) -> list[str]:
    """As textwrap does it, which imports the regular expressions."""
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} {word}".lstrip()
        if len(longer) <= _WIDTH:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
