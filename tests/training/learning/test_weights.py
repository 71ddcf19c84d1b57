"""A run starts from trained weights, trains some layers, and takes the classes that are added."""

from pathlib import Path

import pytest
import torch
from torch import nn

from training.faults import WrongUse
from training.learning.weights import factors, freeze, hold_still, read, save, start_from


def network(classes=3, *, width=4):
    return nn.Sequential(
        nn.Linear(2, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, classes)
    )


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_network_starts_from_the_weights_of_a_published_folder(tmp_path):
    trained, fresh = network(), network()
    save(trained, ("a", "b", "c"), tmp_path / "weights.pt")
    assert start_from(fresh, read(tmp_path), "3", ("a", "b", "c")) == []
    assert same(trained.state_dict().values(), fresh.state_dict().values())


def test_weights_that_do_not_fit_the_disk_are_an_error_of_the_system_with_their_file():
    with pytest.raises(OSError, match=r"cannot be written: is the disk full.*/dev/full"):
        save(network(), ("a", "b", "c"), Path("/dev/full"))


def test_classes_keep_their_rows_by_name_and_new_ones_start_afresh(tmp_path):
    trained, fresh = network(2), network(3)
    before = fresh[3].weight.detach().clone()
    save(trained, ("cat", "dog"), tmp_path / "weights.pt")
    (said,) = start_from(fresh, read(tmp_path), "3", ("ant", "cat", "dog"))
    assert torch.equal(fresh[3].weight[1:], trained[3].weight)
    assert torch.equal(fresh[3].weight[0], before[0])
    assert "2 classes keep their weights, 1 start from random ones" in said


def test_an_inner_layer_of_another_network_is_never_taken_for_the_classes(tmp_path):
    deeper = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 2))
    save(deeper, ("cat", "dog"), tmp_path / "weights.pt")
    with pytest.raises(WrongUse, match=r"0.weight is \[5, 2\].* 2 classes.* same --network"):
        start_from(nn.Sequential(nn.Linear(2, 3)), read(tmp_path), "0", ("ant", "cat", "dog"))


@pytest.mark.parametrize("prefix", ["module.", "model."])
def test_a_state_dict_of_others_is_found_under_wrapped_names(tmp_path, prefix):
    trained = network()
    state = {f"{prefix}{name}": value for name, value in trained.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "own.pth")
    wrapped = nn.Sequential(nn.Identity(), network())
    start_from(wrapped, read(tmp_path / "own.pth"), "1.3", ("a", "b", "c"))
    assert same(trained.state_dict().values(), wrapped[1].state_dict().values())


def test_a_last_layer_of_another_size_starts_afresh_and_other_layers_may_not_differ(tmp_path):
    torch.save(network(1000).state_dict(), tmp_path / "own.pt")
    weights = read(tmp_path / "own.pt")
    assert start_from(network(), weights, "3", "abc") == [
        "--init: the last layer starts from random weights, for 3 classes"
    ]
    with pytest.raises(WrongUse, match=r"0.weight is \[4, 2\]; the network's is \[5, 2\]"):
        start_from(network(width=5), weights, "3", "abc")
    with pytest.raises(WrongUse, match="tensors are missing"):
        start_from(nn.Sequential(network(), nn.Linear(3, 3)), weights, "1", "abc")


def test_what_was_fitted_to_the_rows_may_be_missing_in_the_weights_of_others(tmp_path):
    class Means(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.tensor([7.0, 8.0]))

    trained, own = network(), nn.Sequential(Means(), network())
    torch.save(trained.state_dict(), tmp_path / "own.pt")
    weights = read(tmp_path / "own.pt")
    (said,) = start_from(own, weights, "1.3", ("a", "b", "c"), fitted=["0.mean"])
    assert "standardised by these data" in said
    assert same(trained.state_dict().values(), own[1].state_dict().values())
    assert own[0].mean.tolist() == [7, 8]
    with pytest.raises(WrongUse, match=r"has no 0\.mean"):
        start_from(own, weights, "1.3", ("a", "b", "c"))


def test_what_is_no_state_dict_is_refused_and_nothing_in_it_is_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (print, ("run",))

    torch.save(Harmful(), tmp_path / "harmful.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"0.weight": torch.eye(2).to_sparse()}, tmp_path / "sparse.pt")
    (tmp_path / "text.pt").write_text("hello")
    for name in ("harmful.pt", "list.pt", "text.pt", "not-there.pt", "sparse.pt"):
        with pytest.raises(
            WrongUse, match=r"(cannot be read|holds no tensors|there is no file|is sparse)"
        ):
            read(tmp_path / name)


def test_frozen_parts_stay_still_with_their_statistics():
    net = network()
    freeze(net, ["0", "1"], "3")
    net.train()
    hold_still(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1.0)
    net(torch.randn(8, 2)).square().sum().backward()
    optimiser.step()
    changed = {
        name for name, value in net.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"3.weight", "3.bias"}


def test_all_but_the_last_layer_can_be_frozen_and_not_everything():
    net = network()
    freeze(net, ["all-but-last"], "3")
    assert [name for name, p in net.named_parameters() if p.requires_grad] == ["3.weight", "3.bias"]
    with pytest.raises(WrongUse, match="nothing is left to train"):
        freeze(net, ["3"], "3")
    with pytest.raises(WrongUse, match="no parameter is named conv1; the layers are 0, 1, 3"):
        freeze(network(), ["conv1"], "3")
    with pytest.raises(WrongUse, match="no layer with parameters before its last linear layer"):
        freeze(nn.Sequential(nn.Flatten(), nn.Linear(2, 3)), ["all-but-last"], "1")


def test_the_longest_prefix_sets_the_rate_of_a_part():
    found = factors(nn.Sequential(network(), nn.Linear(3, 2)), {"0": 0.1, "0.3": 0.5})
    assert found["0.0.weight"] == 0.1
    assert found["0.3.bias"] == 0.5
    assert found["1.weight"] == 1
    with pytest.raises(WrongUse, match="--lr-of 9"):
        factors(network(), {"9": 1.0})
