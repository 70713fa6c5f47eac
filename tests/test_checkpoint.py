"""Checkpoints: what is kept, what is noticed, and that nothing damaged is ever taken for whole."""

import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgclf_jax.errors import UserError
from imgclf_jax.workdir import checkpoint_folder
from imgclf_jax.workdir.checkpoint import Checkpoints, OtherModel
from imgclf_jax.workdir.checkpoint_folder import exists
from imgclf_jax.workdir.checkpoint_tree import checksum

# What Orbax's threads say about files that cannot be read or written is reported by exceptions as well.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def tree(seed=0):
    """Every dtype that a state is made of, an empty subtree, and a value that is not finite."""
    draw = np.random.default_rng(seed).normal
    return {
        "params": {"kernel": jnp.asarray(draw(size=(3, 5)), jnp.float32), "bias": jnp.asarray([1.0, jnp.nan, -0.0])},
        "moments": (jnp.asarray(draw(size=7), jnp.bfloat16), {}),
        "images": jnp.arange(11, dtype=jnp.uint8),
        "step": jnp.int32(seed),
    }


def template(of):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), of)


def bits(of):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(of)]


def save(folder, accuracies, keep=2, keep_every=0):
    """Saves a tree a step, from 1, with the given validation accuracies (or `None`)."""
    checkpoints = Checkpoints(folder, keep, keep_every=keep_every)
    for step, accuracy in enumerate(accuracies, 1):
        checkpoints.save(step, tree(step), accuracy)
    checkpoints.wait()
    checkpoints.close()


def restore_newest(folder):
    """(tree, step), what is wrong with newer ones; the damaged are moved aside, as when training goes on."""
    before = sorted(folder.rglob("*"))
    checkpoints = Checkpoints(folder, read_only=True)
    found = checkpoints.restore_newest(template(tree()))
    checkpoints.close()
    assert sorted(folder.rglob("*")) == before
    checkpoint_folder.set_aside(folder, found.damaged)
    return (found.tree, found.step), list(found.damaged.values())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save(folder, [None, None])
    return folder


@pytest.fixture
def pair(saved, tmp_path):
    """A workdir with checkpoints of steps 1 and 2; a copy."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_newest_comes_back_to_the_last_bit(pair):
    (found, step), warned = restore_newest(pair)
    assert step == 2 and warned == []
    assert bits(found) == bits(tree(2))
    assert jax.tree.structure(found) == jax.tree.structure(tree(2))


def test_without_a_template_it_comes_back_as_dicts(tmp_path):
    class State(tuple):
        """Its fields are not in alphabetical order, as those of a training state are not."""

    jax.tree_util.register_pytree_with_keys(
        State,
        lambda state: ([(jax.tree_util.GetAttrKey(name), leaf) for name, leaf in zip("ba", state, strict=True)], None),
        lambda _, leaves: State(leaves),
    )
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"state": State((jnp.arange(3.0), jnp.arange(4.0)))})
    checkpoints.wait()
    found = checkpoints.restore(1)
    checkpoints.close()
    assert found["state"]["b"].shape == (3,) and found["state"]["a"].shape == (4,)


def test_saving_reads_the_values_of_its_moment(tmp_path):
    """The next step reuses the buffers of what is being written."""
    checkpoints = Checkpoints(tmp_path)
    value = jnp.arange(1000.0)
    checkpoints.save(1, {"value": value})
    value.delete()
    checkpoints.wait()
    found = checkpoints.restore(1, {"value": jax.ShapeDtypeStruct((1000,), jnp.float32, sharding=jnp.ones(1).sharding)})
    checkpoints.close()
    assert bits(found) == bits({"value": jnp.arange(1000.0)})


def test_a_step_that_is_there_is_left_alone(pair):
    checkpoints = Checkpoints(pair)
    checkpoints.save(2, tree(99))
    checkpoints.wait()
    checkpoints.close()
    (found, _), _ = restore_newest(pair)
    assert bits(found) == bits(tree(2))


@pytest.mark.parametrize(
    ("keep", "accuracies", "kept", "best"),
    [
        (2, [0.1, 0.5, 0.2, 0.3, 0.4], [2, 4, 5], 2),
        (1, [0.1, 0.2, 0.3], [3], 3),
        (3, [None, None, None, None], [2, 3, 4], None),
        (1, [0.9, None, None], [1, 3], 1),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, keep, accuracies, kept, best):
    save(tmp_path, accuracies, keep)
    again = Checkpoints(tmp_path, keep)
    # Also after a restart, which has to know what the accuracies were.
    assert (again.steps(), again.best()) == (kept, best)
    again.save(len(accuracies) + 1, tree(), 0.0 if best else None)
    again.wait()
    again.close()
    assert again.best() == best


def test_every_so_many_steps_one_is_kept_for_good_also_after_a_restart(tmp_path):
    save(tmp_path, [0.9, 0.1, 0.2, 0.3, 0.4], keep=1, keep_every=2)
    again = Checkpoints(tmp_path, 1, keep_every=2)
    assert again.steps() == [1, 2, 4, 5]  # the best, the even ones, and the newest
    again.save(6, tree(), 0.0)
    again.save(7, tree(), 0.0)
    again.close()
    assert (again.steps(), again.best()) == ([1, 2, 4, 6, 7], 1)


def test_nothing_to_restore_where_nothing_was_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore_newest(template(tree())) is None
    checkpoints.close()
    assert not exists(tmp_path / "nowhere")
    assert not exists(tmp_path)


def test_reading_only_leaves_no_trace(pair):
    before = sorted(pair.rglob("*"))
    checkpoints = Checkpoints(pair, read_only=True)
    assert checkpoints.steps() == [1, 2] and exists(pair)
    checkpoints.restore(2, template(tree()))
    checkpoints.close()
    assert sorted(pair.rglob("*")) == before


# Damage


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def delete(path):
    path.unlink()


def test_no_damage_to_any_file_goes_unnoticed(saved, tmp_path):
    """Either the checkpoint is whole all the same, or the one before is taken and the user sees a line."""
    newest = saved / "checkpoints" / "2"
    files = [path.relative_to(newest) for path in sorted(newest.rglob("*")) if path.is_file()]
    fallbacks = set()
    for number, (file, damage) in enumerate(itertools.product(files, (truncate, flip, delete))):
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        damage(folder / "checkpoints" / "2" / file)
        (found, step), warned = restore_newest(folder)
        assert bits(found) == bits(tree(step)), (file, damage)
        assert len(warned) == (0 if step == 2 else 1), (file, damage, warned)
        if step == 1:
            assert str(folder / "checkpoints" / "2") in warned[0]
            assert (folder / "damaged_checkpoints" / "2").is_dir()
            assert not (folder / "checkpoints" / "2").exists()
            fallbacks.add((file.parent.name, damage.__name__))
    assert {("d", "truncate"), ("d", "flip"), ("d", "delete")} <= fallbacks


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"accuracy": "high"}', '{"accuracy": NaN}'])
def test_an_accuracy_that_cannot_be_read_is_reported_and_never_the_best(tmp_path, content):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, tree(step), 0.1 * step)
    checkpoints.wait()
    assert checkpoints.best() == 2
    checkpoints.close()
    (tmp_path / "checkpoints" / "2" / "metrics" / "metrics").write_text(content)
    with pytest.warns(UserWarning, match="2: its validation accuracy cannot be read"):
        checkpoints = Checkpoints(tmp_path)
    assert (checkpoints.steps(), checkpoints.best()) == ([1, 2], 1)
    assert bits(checkpoints.restore(2, template(tree()))) == bits(tree(2))
    checkpoints.save(3, tree(3), 0.05)
    checkpoints.wait()
    checkpoints.close()


def test_flipped_bits_in_the_data_are_noticed_wherever_they_are(saved, tmp_path):
    data = max((saved / "checkpoints" / "2").rglob("d/*"), key=lambda path: path.stat().st_size)
    size = data.stat().st_size
    for number, position in enumerate(range(0, size, max(1, size // 12))):
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        path = folder / data.relative_to(saved)
        content = bytearray(path.read_bytes())
        content[position] ^= 1
        path.write_bytes(content)
        (found, step), _ = restore_newest(folder)
        assert bits(found) == bits(tree(step)), position


def test_a_change_of_any_element_changes_thechecksum():
    value = tree(3)
    sums = {int(checksum(value))}
    leaves, structure = jax.tree.flatten(value)
    for index, leaf in enumerate(leaves):
        for element in range(leaf.size):
            flat = np.asarray(leaf).ravel().copy()
            flat.view(np.uint8)[element * leaf.dtype.itemsize] ^= 1
            changed = [*leaves[:index], jnp.asarray(flat.reshape(leaf.shape)), *leaves[index + 1 :]]
            sums.add(int(checksum(jax.tree.unflatten(structure, changed))))
    assert len(sums) == 1 + sum(leaf.size for leaf in leaves)
    swapped = value | {"images": value["images"].at[jnp.array([2, 5])].set(value["images"][jnp.array([5, 2])])}
    assert int(checksum(swapped)) not in sums


def test_a_folder_that_was_being_written_is_ignored(pair):
    torn = pair / "checkpoints" / "3.orbax-checkpoint-tmp"
    shutil.copytree(pair / "checkpoints" / "2" / "default", torn / "default.orbax-checkpoint-tmp")
    shutil.copytree(pair / "checkpoints" / "2", pair / "checkpoints" / "4.orbax-checkpoint-tmp-123")
    (found, step), warned = restore_newest(pair)
    assert step == 2 and warned == [] and bits(found) == bits(tree(2))
    checkpoints = Checkpoints(pair)
    checkpoints.save(3, tree(3))
    checkpoints.wait()
    checkpoints.close()
    (found, step), _ = restore_newest(pair)
    assert step == 3 and bits(found) == bits(tree(3))


def test_a_folder_that_holds_nothing_is_passed_over(pair):
    (pair / "checkpoints" / "3").mkdir()
    (found, step), _ = restore_newest(pair)
    assert step == 2 and bits(found) == bits(tree(2))
    shutil.rmtree(pair / "checkpoints" / "2" / "default")
    (found, step), _ = restore_newest(pair)
    assert step == 1 and bits(found) == bits(tree(1))


def test_if_none_is_whole_the_user_sees_an_error(pair):
    for path in (pair / "checkpoints").rglob("d/*"):
        truncate(path)
    with pytest.raises(UserError, match="none of the checkpoints") as caught:
        restore_newest(pair)
    assert len(str(caught.value).splitlines()) == 1


def test_a_checkpoint_of_another_shape_is_refused_in_one_line(pair):
    checkpoints = Checkpoints(pair)
    other = template(tree() | {"images": jnp.zeros(12, jnp.uint8)})
    for function in (lambda: checkpoints.restore(2, other), lambda: checkpoints.restore_newest(other)):
        with pytest.raises(OtherModel) as caught:
            function()
        assert "images is uint8 (11,) there and is uint8 (12,) in this config" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    checkpoints.close()


def test_a_failed_save_is_reported_at_the_latest_when_waited_for(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree(1))
    checkpoints.wait()
    (tmp_path / "checkpoints").rename(tmp_path / "away")
    (tmp_path / "checkpoints").write_text("no folder")
    with pytest.raises(UserError, match="could not save a checkpoint"):
        checkpoints.save(2, tree(2))
        checkpoints.wait()
