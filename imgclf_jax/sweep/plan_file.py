"""`sweep.json`: what was asked of a folder last, and where the runs of its variants are.

`{"version": 1, "config": FILE, "base": {FIELD: VALUE}, "groups": [GROUP], "seeds": [SEED], "folds": FOLDS,
"earlier": [GROUP]}` with GROUP = `{"name", "identity", "changes", "folder"}`.

- "config" is the value of `--config`.
- "base" has the fields of the base that can change what training computes and differ from their defaults, so that it is
  known later what has changed.
- "groups", "seeds" and "folds" are those that were asked for last; the first group is the baseline.
- "parts", only if a config names modules of one's own, has the folders where they are looked for.
- "earlier" has the variants that were asked for before and not last. Their runs stay in their folders.
"""

import json
import re
from pathlib import Path
from typing import Any

from imgclf_jax import components
from imgclf_jax import config as configs
from imgclf_jax.errors import UserError
from imgclf_jax.storage import files
from imgclf_jax.sweep.resolving import FOLDS, Group, Job, Study, run_folder
from imgclf_jax.sweep.spec import short_name, value_text

NAME = "sweep.json"
VERSION = 1
ADVICE = "; delete the file and run the same command again: runs that were finished are kept"
RUN_FILES = ("run.json", "config.json", "metrics.csv", "checkpoints")  # of an ordinary run


def read(folder: Path) -> dict[str, Any] | None:
    """Returns the content of `sweep.json` in a folder, or `None` if there is none.

    Raises:
        UserError: the file is damaged, is not a file of this package or was written by a later version.
    """
    path = folder / NAME
    content = files.read_json(path, ADVICE)
    if content is None:
        return None
    version = content.get("version")
    if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
        raise UserError(f"cannot read {path}: a later version of imgclf_jax wrote it; use that version")
    if version != VERSION or not _is_sound(content):
        raise UserError(f"cannot read {path}: it does not describe a sweep of imgclf_jax; choose another --workdir")
    return {"base": {}, "earlier": []} | content


def write(folder: Path, content: dict[str, Any]) -> None:
    """Replaces `sweep.json` in a folder. Raises `OSError` if it cannot be written; the previous one is kept."""
    files.write_json(folder / NAME, content)


def check_folder(folder: Path, study: Study, config_file: str) -> dict[str, Any] | None:
    """Checks that a folder can hold a sweep. Changes nothing.

    Returns:
        The content of its `sweep.json`, or `None`.

    Raises:
        UserError: the folder holds an ordinary run or a sweep of another config, or `sweep.json` cannot be read.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder; choose another --workdir")
    old = read(folder)
    if old is None:
        if any((folder / name).exists() for name in RUN_FILES):
            raise UserError(f"{folder} holds a run, not a sweep; choose another --workdir")
        return None
    same_file = Path(old["config"]).resolve() == Path(config_file).resolve()
    if not same_file and old["base"] != _base(study):
        raise UserError(f"{folder} holds a sweep of {old['config']} with another base config; choose another --workdir")
    return old


def keep_folders(study: Study, old: dict[str, Any] | None) -> Study:
    """Returns the study with the folders that its variants have in `old`, in which they may have had other names."""
    folders = {group["identity"]: group["folder"] for group in _all_groups(old)} if old else {}
    groups = {each.identity: each._replace(folder=folders.get(each.identity, each.folder)) for each in study.groups}
    runs = [_moved(job, groups[job.group.identity], study.folds) for job in study.runs]
    return study._replace(groups=list(groups.values()), runs=runs)


def content(study: Study, config_file: str, old: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns the new content of `sweep.json`.

    Args:
        study: the study, after `keep_folders`.
        config_file: the value of `--config`.
        old: the present content, if any; see `check_folder`.
    """
    present = {group.identity for group in study.groups}
    earlier = {group["identity"]: group for group in reversed(_all_groups(old)) if group["identity"] not in present}
    made = {
        "version": VERSION,
        "config": config_file,
        "base": _base(study),
        "groups": [_saved(group) for group in study.groups],
        "seeds": study.seeds,
        "folds": study.folds,
        "earlier": list(reversed(earlier.values())),
    }
    if any(configs.own_parts(group.config) for group in study.groups):
        made["parts"] = components.folders()
    return json.loads(json.dumps(made))  # with lists for tuples, as it will be read


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Returns one line for each difference between two contents of `sweep.json`, for a person to read."""
    lines = [f"config file: {old['config']} -> {new['config']}"] if old["config"] != new["config"] else []
    defaults = configs.flatten(configs.to_json(configs.default()))
    for path in sorted(old["base"] | new["base"]):
        before, after = (content["base"].get(path, defaults.get(path)) for content in (old, new))
        if before != after and path != FOLDS:
            lines.append(f"base: {path}: {before!r} -> {after!r}")
    lines += _group_lines(old, new)
    if old["groups"] and new["groups"] and old["groups"][0]["name"] != new["groups"][0]["name"]:
        lines.append(f"first variant: {old['groups'][0]['name']} -> {new['groups'][0]['name']}")
    if added := [seed for seed in new["seeds"] if seed not in old["seeds"]]:
        lines.append(f"seeds added: {seeds_text(added)}")
    if removed := [seed for seed in old["seeds"] if seed not in new["seeds"]]:
        lines.append(f"seeds removed: {seeds_text(removed)}; their runs are kept")
    if old["folds"] != new["folds"]:
        lines.append(f"folds: {old['folds']} -> {new['folds']}")
    return lines


def seeds_text(seeds: list[int]) -> str:
    """Returns seeds in a short form: [0, 1, 2, 7] is "0 to 2, 7"."""
    spans: list[list[int]] = []
    for seed in sorted(seeds):
        if spans and seed == spans[-1][1] + 1:
            spans[-1][1] = seed
        else:
            spans.append([seed, seed])
    return ", ".join(
        f"{first} to {last}" if last > first + 1 else f"{first}, {last}" if last > first else str(first)
        for first, last in spans
    )


def _group_lines(old, new):
    lines = []
    asked, known = ({group["identity"]: group for group in groups} for groups in (old["groups"], _all_groups(old)))
    present = {group["identity"] for group in new["groups"]}
    names = {group["name"] for group in old["groups"]}
    renamed = set()
    for group in new["groups"]:
        before = known.get(group["identity"])
        if before and before["name"] != group["name"]:
            renamed.add(before["identity"])
            lines.append(f"renamed: {before['name']} -> {group['name']}; its runs stay in {group['folder']}")
        elif before and group["identity"] not in asked:
            lines.append(f"added again: {_described(group)}; its runs in {group['folder']} are used")
        elif not before:
            word = "changed" if group["name"] in names else "added"
            lines.append(f"{word}: {_described(group)}")
    for group in old["groups"]:
        if group["identity"] not in present:
            again = any(group["name"] == other["name"] for other in new["groups"])
            what = f"no longer asked for: the earlier {group['name']}" if again else f"removed: {_described(group)}"
            lines.append(f"{what}; its runs are kept in {group['folder']}")
    return lines


def _described(group):
    """The name and, unless the name says it, what the variant changes."""
    text = ", ".join(f"{short_name(path)}={value_text(value)}" for path, value in group["changes"].items())
    return group["name"] if not text or text.replace(" ", "") == group["name"] else f"{group['name']} ({text})"


def _all_groups(content):
    return [*content["groups"], *content["earlier"]] if content else []


def _saved(group: Group) -> dict[str, Any]:
    return {"name": group.name, "identity": group.identity, "changes": group.changes, "folder": group.folder}


def _moved(job: Job, group: Group, folds: int) -> Job:
    return job._replace(group=group, folder=run_folder(group.folder, job.seed, job.fold, folds))


def _base(study):
    return dict(sorted(configs.experiment(study.base).items()))


def _is_sound(content):
    """Whether the members have their types, and no folder leads out of that of the sweep."""
    base, groups, earlier = content.get("base", {}), content.get("groups"), content.get("earlier", [])
    seeds, folds, parts = content.get("seeds"), content.get("folds"), content.get("parts", [])
    return (
        isinstance(parts, list)
        and all(isinstance(part, str) for part in parts)
        and isinstance(content.get("config"), str)
        and isinstance(base, dict)
        and isinstance(groups, list)
        and isinstance(earlier, list)
        and all(map(_is_group, [*groups, *earlier]))
        and isinstance(seeds, list)
        and all(isinstance(seed, int) and seed >= 0 for seed in seeds)
        and isinstance(folds, int)
        and folds >= 0
    )


def _is_group(group):
    return (
        isinstance(group, dict)
        and all(isinstance(group.get(key), str) for key in ("name", "identity", "folder"))
        and isinstance(group.get("changes"), dict)
        and re.fullmatch(r"[0-9a-f]{64}", group["identity"]) is not None
        and re.fullmatch(r"(?![.-])[A-Za-z0-9_.,=+-]+", group["folder"]) is not None
    )
