"""What the store's files hold comes back bit by bit; one that was changed or is another's is noticed."""

import hashlib
from threading import Thread

import torch

import tasks.metrics.store as store_module
from tasks.metrics import CellStore
from tasks.metrics.store import Entry, tensor_digest

FACTS = {"stage": "suite", "weights": "w", "cell": 3}
X = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))


def entry() -> Entry:
    tensors = {"flags": torch.tensor([True, False]), "half": torch.arange(6.0).view(2, 3).bfloat16(), "none": X[:0]}
    return Entry(tensors, {"seconds": 0.1, "silent": None, "name": "é"})


def test_an_entry_comes_back_bit_by_bit_with_its_parts(store):
    columns = torch.arange(12.0).view(3, 4).T  # not contiguous, and twice the same memory
    whole = entry().joined("parts", [Entry({"a": columns, "b": columns}, {"n": 1}), Entry({}, {"n": None})])
    store.put(FACTS, whole)
    found = store.get(dict(reversed(FACTS.items())))
    assert found is not None
    assert found.values == whole.values
    assert {name: tensor_digest(tensor) for name, tensor in found.tensors.items()} == {
        name: tensor_digest(tensor) for name, tensor in whole.tensors.items()
    }
    rest, parts = found.parted("parts")
    assert rest.fields.keys() == entry().fields.keys()
    assert torch.equal(parts[0].tensors["b"], columns)
    assert parts[1] == Entry({}, {"n": None})
    assert (len(store), list(store.problems())) == (1, [])
    assert store.size() == store.path(FACTS).stat().st_size
    assert store.get({**FACTS, "cell": 4}) is None


def test_one_changed_byte_anywhere_is_noticed_and_never_returned(store, caplog):
    store.put(FACTS, entry())
    path = store.path(FACTS)
    good, aside = path.read_bytes(), path.with_name(path.name + ".broken")
    assert 300 < len(good) < 2000
    for place in range(len(good)):
        for changed in {good[place] ^ 1, good[place] ^ 0x80, 0x09 if good[place] == 0x20 else 0x20} - {good[place]}:
            path.write_bytes(good[:place] + bytes([changed]) + good[place + 1 :])
            assert len(list(store.problems())) == 1, (place, changed)
            caplog.clear()
            assert store.get(FACTS) is None, (place, changed)
            assert aside.exists()
            assert not path.exists()
            assert str(path) in caplog.text
            assert caplog.records[0].name == "redoubt"
    path.write_bytes(good)
    assert store.get(FACTS) is not None


def test_a_file_that_was_cut_short_or_went_on_is_noticed(store):
    store.put(FACTS, entry())
    path = store.path(FACTS)
    good = path.read_bytes()
    for raw in [good[:length] for length in range(len(good))] + [good + b"\0", b"\xff" * 64]:
        path.write_bytes(raw)
        assert len(list(store.problems())) == 1
        assert store.get(FACTS) is None


def test_a_whole_file_under_another_s_name_is_noticed(store):
    other = {**FACTS, "cell": 4}
    store.put(other, entry())
    store.path(other).rename(store.path(FACTS))
    assert ["under the name of another result" in problem for problem in store.problems()] == [True]
    assert store.get(FACTS) is None
    assert list(store.problems()) == []  # it was set aside


def test_many_writers_and_readers_of_one_cell_leave_one_valid_entry(store):
    big = Entry({"x": torch.rand(500, 200)}, {})
    found: list[Entry | None] = []

    def writes(seconds: float) -> None:
        for _ in range(20):
            store.put(FACTS, Entry(big.tensors, {"seconds": seconds}))
            found.append(store.get(FACTS))

    threads = [Thread(target=writes, args=(float(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert all(entry is not None and torch.equal(entry.tensors["x"], big.tensors["x"]) for entry in found)
    assert [path.name for path in store.folder.iterdir()] == [store.path(FACTS).name]
    assert list(store.problems()) == []


def test_with_a_secret_only_what_its_holder_has_stored_is_taken(tmp_path):
    entry = Entry({"x": torch.arange(3.0)}, {"a": "mark\\"})
    plain, ours, theirs = (CellStore(tmp_path, secret=secret) for secret in (b"", b"ours", b"theirs"))
    for forger in (plain, theirs):
        forger.put(FACTS, entry)
        assert ours.get(FACTS) is None
        assert plain.get(FACTS) is not None
    ours.put(FACTS, entry)
    assert torch.equal(ours.get(FACTS).tensors["x"], entry.tensors["x"])
    assert plain.get(FACTS) is not None
    assert theirs.get(FACTS) is None
    assert list(plain.problems()) == []


def test_a_marked_file_that_was_changed_and_sealed_again_is_not_taken(tmp_path):
    ours = CellStore(tmp_path, secret=b"ours")
    ours.put(FACTS, Entry({"x": torch.arange(3.0)}, {"robust": 0.1}))
    mark = store_module.MARK.search(ours.path(FACTS).read_bytes())[1]
    forged = store_module._sealed(FACTS, Entry({"x": torch.arange(3.0)}, {"robust": 0.9}))
    place = store_module.MARK.search(forged)
    forged[place.start(1) : place.end(1)] = mark
    seal = store_module.SEAL.search(forged)
    forged[seal.start(1) : seal.end(1)] = store_module.BLANK.encode()
    forged[seal.start(1) : seal.end(1)] = hashlib.sha256(forged).hexdigest().encode()
    ours.path(FACTS).write_bytes(forged)
    assert CellStore(tmp_path).get(FACTS).values == {"robust": 0.9}  # whole, for who holds no secret
    assert ours.get(FACTS) is None
