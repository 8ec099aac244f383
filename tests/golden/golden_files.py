"""What the scripts that write golden files share."""
import filecmp
import shutil
import sys


def check_versions(versions):
    """Ends the script unless the modules that it imported have these versions."""
    for name, version in versions.items():
        found = sys.modules[name].__version__.split("+")[0]
        if found != version:
            sys.exit(f"{name}: expected {version}, found {found}. Use the Python that the head of "
                     "this script names (tests/parity/setup.sh makes the usual one).")


def publish(root, here, check):
    """Copies the files below root that differ from those below `here` to it; with `check` only
    tells them, and fails when there are any."""
    changed = []
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        target = here / path.relative_to(root)
        if target.exists() and filecmp.cmp(path, target, shallow=False):
            continue
        changed.append(str(target.relative_to(here)))
        if not check:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    if check and changed:
        sys.exit("would change: " + ", ".join(changed))
    print("\n".join(changed) or "nothing changed")
