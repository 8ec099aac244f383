"""Where seed files go."""
import pathlib

SEEDS = pathlib.Path(__file__).parent / "seeds"


def write(parser, name, content):
    path = SEEDS / parser / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
