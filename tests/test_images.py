"""Images: data sets, the model's view of them, likelihoods, pictures and the Frechet distance."""
import io
import itertools
import json
import os
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import checkpoint
import data
import evaluate
import frechet
import prime
import sample
import train
from common import Fail
from data.cifar10 import prepare as cifar10
from data.glyphs import prepare as glyphs
from data.writing import write_images as write
from figures import images as pictures
from interpolant import schedule
from model import Config, Transformer, angles_of_images, rotate
from oracle import Oracle, entropy, random_p

TINY = ["--n_layer", "1", "--n_head", "2", "--n_embd", "16", "--max_iters", "2",
        "--batch_size", "4", "--eval_interval", "2", "--eval_iters", "1", "--sample_steps", "2",
        "--warmup_iters", "0", "--compile=False", "--device", "cpu", "--log_interval", "1"]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """A data set of 40 + 20 images, 4 x 4"""
    folder = str(tmp_path_factory.mktemp("squares"))
    train_parts = [noise(30, 4, 4, 1), noise(10, 4, 4, 1, seed=1)]      # files come in parts
    sides = {"train": train_parts, "val": [noise(20, 4, 4, 1)]}
    write(folder, "intensities-256", sides, made={"name": "squares"})
    return folder


# -----------------------------------------------------------------------------
# data

def test_a_document_is_an_image_row_by_row(squares):
    dataset = data.load(squares)
    x, n, given = dataset.train.batch(range(40))
    wanted = np.concatenate([noise(30, 4, 4, 1), noise(10, 4, 4, 1, seed=1)]).reshape(40, 16)
    assert (x.numpy() == wanted).all() and (n == 16).all() and given is None
    assert dataset.meta["shape"] == [4, 4, 1] and dataset.train.block_size == 16
    assert dataset.tokenizer.vocab_size == 256                  # 255 is white, and ends nothing
    assert dataset.tokenizer.decode([255, 0]) == "255 0"
    assert os.path.getsize(os.path.join(squares, "train.bin")) == 40 * 16


def test_glyphs():
    outlines = glyphs.outlines()
    assert len(outlines) >= 10 * 62 and len(outlines) % 62 == 0
    drawn = glyphs.draw(outlines, 200, np.random.default_rng(0))
    again = glyphs.draw(outlines, 200, np.random.default_rng(0))
    assert (drawn == again).all()
    assert (drawn.reshape(200, -1).max(1) > 128).all()          # there is something on each
    assert (drawn[:, [0, -1]] > 0).mean() < 0.15                # and little on the border
    assert len(np.unique(drawn)) > 200                          # of 256 greys


def test_held_out_pairs_of_glyphs_are_not_trained_on(tmp_path, monkeypatch):
    asked = []

    def draw(pairs, count, rng):
        asked.append(pairs)
        return noise(3, 16, 16, 1)
    monkeypatch.setattr(glyphs, "draw", draw)
    glyphs.prepare(str(tmp_path), "intensities-256")
    train, val = [{id(vertices) for vertices, _ in pairs} for pairs in asked]
    assert not train & val and len(val) == (len(train) + len(val)) // 11


def archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def records(count, seed):
    """The file's layout: a label, then all red, all green and all blue intensities"""
    return noise(count, 3073, seed=seed)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A folder with the set cifar10, of 20 + 10 images: its data_dir"""
    folder = tmp_path_factory.mktemp("cifar")
    members = {f"data_batch_{i}.bin": records(4, i).tobytes() for i in range(1, 6)}
    members |= {"test_batch.bin": records(10, 6).tobytes(), "readme.html": b"hello"}
    path = archive(folder / "cifar-10-binary.tar.gz", members)
    argv = ["--from", path, "--data_dir", str(folder)]
    data.by_hand("cifar10", cifar10.__doc__, argv=argv)
    return str(folder)


def test_cifar10_end_to_end(cifar, tmp_path, capsys):
    train_images = data.load("cifar10", cifar).train
    assert len(train_images) == 20
    pixels = train_images.batch([5])[0].view(32, 32, 3)         # the second of data_batch_2.bin
    planes = torch.from_numpy(records(4, 2)[1, 1:]).view(3, 32, 32)
    assert torch.equal(pixels, planes.permute(1, 2, 0).long())
    out = str(tmp_path / "out")
    train.train(["--dataset", "cifar10", "--data_dir", cifar, "--out_dir", out, *TINY])
    loaded = checkpoint.load(out)
    assert loaded.config.shape == (32, 32, 3) and loaded.config.block_size == 3072
    assert (loaded.code.ell, loaded.args["unmasking"]) == (2, "polynomial,exponent=3")     # preset
    assert Image.open(f"{out}/samples.png").size[0] == 8 * 33
    sample.run(["--out_dir", out, "--png", f"{out}/g.png", "--num_samples", "2", "--steps", "2"])
    assert "g.png: 2 images" in capsys.readouterr().out


@pytest.mark.parametrize("members, fault", [
    ({"data_batch_1.bin": b"x" * 3072, "test_batch.bin": b"x" * 3073}, "has 3,072 bytes"),
    ({"data_batch_1.bin": b"", "test_batch.bin": b"x" * 3073}, "has 0 bytes"),
    ({"data_batch_1.bin": b"x" * 3073}, "no data_batch_1.bin and test_batch.bin"),
    ({"data_batch_1": b"a pickle"}, "no data_batch_1.bin and test_batch.bin")])
def test_cifar10_of_another_size(tmp_path, members, fault):
    with pytest.raises(Fail, match=fault):
        cifar10.read(archive(tmp_path / "a.tar.gz", members))


def test_a_damaged_archive(tmp_path):
    path = archive(tmp_path / "a.tar.gz", {"data_batch_1.bin": records(50, 0).tobytes()})
    with open(path, "r+b") as f:
        f.truncate(9000)
    with pytest.raises(Fail, match="truncated or damaged"):
        cifar10.read(path)


def imagenet(folder, **arrays):
    os.makedirs(folder, exist_ok=True)
    for name, planes in arrays.items():
        np.savez(os.path.join(folder, f"{name}.npz"), data=planes, labels=np.arange(len(planes)))
    return str(folder)


def test_imagenet32_end_to_end(tmp_path):
    planes = noise(4, 3072)
    files = imagenet(tmp_path / "files", train_data_batch_1=planes[:2],
                     train_data_batch_2=planes[2:], val_data=noise(2, 3072, seed=1))
    dataset = data.load("imagenet32", str(tmp_path), source=files)
    assert (len(dataset.train), len(dataset.val)) == (4, 2)
    image = dataset.train.batch([3])[0].view(32, 32, 3)
    assert torch.equal(image, torch.from_numpy(planes[3]).view(3, 32, 32).permute(1, 2, 0).long())
    train.train(["--dataset", "imagenet32", "--data_dir", str(tmp_path), "--method", "mdm",
                 "--out_dir", str(tmp_path / "out"), *TINY, "--sample_steps", "0"])


@pytest.mark.parametrize("planes, fault", [
    (noise(2, 3 * 64 * 64), "get the 32 x 32 version"), (np.zeros((2, 3072)), "holds float64"),
    (np.array([{}, {}]), "allow_pickle")])                      # no code in a file is run
def test_imagenet32_of_another_kind(tmp_path, planes, fault):
    files = imagenet(tmp_path / "files", train_data_batch_1=planes, val_data=noise(2, 3072))
    with pytest.raises(Fail, match=fault):
        data.load("imagenet32", str(tmp_path), source=files)


def test_imagenet32_is_not_downloaded(tmp_path):
    with pytest.raises(Fail, match="--from FOLDER"):
        data.load("imagenet32", str(tmp_path))


def test_a_shape_that_does_not_fit_the_file(tmp_path):
    sides = {"train": [noise(3, 4, 4, 1)], "val": [noise(2, 4, 4, 1)]}
    write(str(tmp_path), "intensities-256", sides, made={})
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps(meta | {"shape": [5, 4, 1]}))
    with pytest.raises(Fail, match="48 bytes, which are no images of 5 x 4 x 1"):
        data.load(str(tmp_path))


def test_images_have_no_other_tokenizer(tmp_path):
    with pytest.raises(Fail, match="leave out --tokenizer bytes"):
        write(str(tmp_path), "bytes", {"train": [], "val": []}, made={})


# -----------------------------------------------------------------------------
# model and flags

def test_attention_sees_rows_and_columns_apart():
    """The product of a rotated query and a rotated key depends on both differences, and channels
    of a pixel are at one place."""
    cos, sin = angles_of_images(torch.arange(5 * 6 * 3), 16, 100.0, (5, 6, 3))
    assert cos.shape == (90, 1, 8) and torch.equal(cos[0], cos[1]) and torch.equal(cos[0], cos[2])
    q, k = torch.randn(2, 1, 1, 16)
    q, k = (rotate(x.expand(90, 1, 16), cos, sin)[::3, 0].view(5, 6, 16) for x in (q, k))

    def score(a, b):
        return float(q[a] @ k[b])
    assert score((0, 0), (1, 2)) == pytest.approx(score((3, 3), (4, 5)), abs=1e-5)
    assert abs(score((0, 0), (1, 2)) - score((0, 0), (2, 1))) > 1e-3


def test_channels_differ_by_a_learned_vector():
    """Angles are relative: on a canvas of masks nothing else tells a slot where it is, not even its
    row and column."""
    net = Transformer(Config(V=8, block_size=12, insertion="instant", n_layer=1, n_head=1,
                             n_embd=16, shape=(2, 2, 3)))
    y = torch.full((1, 12, 1), net.code.mask)
    ask = y, torch.tensor([12]), torch.zeros(1), torch.ones(1, 12, dtype=torch.bool)
    logits = net(*ask)[0]                                       # (12, V)
    assert torch.allclose(logits, logits[:1].expand(12, 8), atol=1e-6)
    torch.nn.init.normal_(net.channel)
    logits = net(*ask)[0]
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)


@pytest.mark.parametrize("flags, fault", [
    (["--method", "flexmdm"], "use --method mdm, prime or ar"),
    (["--method", "mdm", "--block_size", "64"], "--block_size 64 does not fit"),
    (["--method", "prime", "--ell", "3"], "must be a multiple of ell 3"),
    (["--method", "mdm", "--n_embd", "12"], "multiple of 4 n_head for images"),
    (["--method", "mdm", "--tokenizer", "bytes"], "was tokenised as intensities-256")])
def test_mistakes_in_training(squares, tmp_path, flags, fault):
    with pytest.raises(Fail, match=fault):
        train.train(["--dataset", squares, "--out_dir", str(tmp_path), *TINY, *flags])


def test_gray_code():
    """Neighbouring intensities differ in one digit, by one, and it is stored with the run."""
    args = train.parse(train.Args, "", ["--method", "prime", "--ell", "4", "--code", "gray"])
    net = train.build(args, data.tokenizer_from("intensities-256"), None)
    digits = net.code.encode(torch.arange(256))
    assert torch.equal(digits.diff(dim=0).abs().sum(1), torch.ones(255, dtype=torch.int64))
    assert torch.equal(net.code.permutation, prime.gray(4, 4))


# -----------------------------------------------------------------------------
# likelihood

@pytest.mark.parametrize("ell", [1, 2])
def test_the_valid_bound_of_a_perfect_model_is_the_entropy(tmp_path, ell):
    """All images of 1 x 3 in four greys, with a random probability each: the bound that evaluate.py
    computes, averaged over many draws, is their entropy."""
    everything = list(itertools.product(range(4), repeat=3))
    p = random_p(len(everything), seed=0)
    code = prime.Code(4, ell)
    oracle = Oracle(everything, p, code, schedule("instant"))
    images = np.array(everything, dtype=np.uint8).reshape(-1, 1, 3, 1)
    write(str(tmp_path), "intensities-256", {"train": [images], "val": [images]}, {})
    documents = data.load(str(tmp_path)).val
    config = Config(V=4, ell=ell, block_size=3, insertion="instant", shape=(1, 3, 1))
    loaded = SimpleNamespace(predict=oracle.predict, code=code, config=config,
                             args={"method": "prime", "unmasking": "linear"})
    nll = evaluate.document_nll(loaded, documents, range(64), "loose", repeats=3000)
    assert float(p @ nll) == pytest.approx(entropy(p), abs=0.02)


# -----------------------------------------------------------------------------
# the commands

@pytest.mark.parametrize("flags, bounds", [
    (["--method", "mdm"], ["valid bound"]), (["--method", "ar"], ["exact"]),
    (["--method", "prime", "--ell", "4", "--code", "gray"], ["valid bound", "paper (no bound)"])])
def test_train_sample_evaluate(squares, tmp_path, capsys, flags, bounds):
    out = str(tmp_path / "out")
    train.train(["--dataset", squares, "--out_dir", out, *TINY, *flags])
    assert os.path.exists(f"{out}/samples.png")
    train.train(["--init_from", "resume", "--out_dir", out, "--max_iters", "3"])
    capsys.readouterr()

    ask = ["--out_dir", out, "--steps", "3", "--num_samples", "4"]
    sample.run([*ask, "--trace", f"{out}/trace.gif"])
    assert Image.open(f"{out}/trace.gif").n_frames >= 3
    sample.run([*ask, "--png", f"{out}/grid.png", "--keep", "top"])
    sheet = np.asarray(Image.open(f"{out}/grid.png"))[::12, ::12, 0]    # it is enlarged 12 times
    sheet = sheet.reshape(2, 5, 9, 5)[:, :4, :, :4].swapaxes(1, 2)      # (2, 9, 4, 4)
    told, drawn, known = sheet.reshape(18, 4, 4)[:12].reshape(4, 3, 4, 4).swapaxes(0, 1)
    assert (told[:, :2] == known[:, :2]).all() and (drawn[:, :2] == known[:, :2]).all()
    assert (known == noise(20, 4, 4, 1)[:4, :, :, 0]).all() and (told[:, 2:] == 128).all()
    if "ar" in flags:
        with pytest.raises(Fail, match="use --keep top"):
            sample.run([*ask, "--png", f"{out}/grid.png", "--keep", "0.3"])
    else:
        sample.run([*ask, "--png", f"{out}/grid.png", "--keep", "left"])
        sample.run([*ask, "--png", f"{out}/grid.png", "--keep", "0.3"])
        with pytest.raises(Fail, match="--keep right"):
            sample.run([*ask, "--png", f"{out}/grid.png", "--keep", "right"])
    with pytest.raises(Fail, match="--png grid.png"):
        sample.run(["--out_dir", out])

    capsys.readouterr()
    evaluate.run(["--out_dir", out, "--documents", "8", "--repeats", "2", "--num_samples", "5",
                  "--steps", "2,4", "--csv", f"{out}/s.csv", "--png", f"{out}/s.png"])
    said = capsys.readouterr().out
    assert all(f"  {bound} " in said for bound in bounds) and "bits per dimension" in said
    assert "the first 16 principal components of the training pixels" in said
    pictures.run(["--out_dir", f"{out},{out}", "--steps", "1,2", "--png", f"{out}/rows.png"])
    assert Image.open(f"{out}/rows.png").size == (450, 430)
    with open(f"{out}/s.csv") as f:
        assert len(f.readlines()) == (2 if "ar" in flags else 3)


def test_images_of_another_shape(squares, tmp_path):
    out, other = str(tmp_path / "out"), str(tmp_path / "other")
    train.train(["--dataset", squares, "--out_dir", out, "--method", "mdm", *TINY])
    write(other, "intensities-256", {"train": [noise(3, 2, 8, 1)], "val": [noise(2, 2, 8, 1)]}, {})
    with pytest.raises(Fail, match=r"shape \(2, 8, 1\), the model \(4, 4, 1\)"):
        evaluate.run(["--out_dir", out, "--dataset", other])


def test_what_is_told_stays(squares):
    """In-painting: the network is told which slots are given, and they are never changed."""
    told = []
    code = prime.Code(256, 2)

    def predict(y, n, t, at, given=None):
        told.append(given)
        return torch.zeros(int(at.sum()), 256), None
    net = SimpleNamespace(code=code, config=Config(256, 2, 16, "instant", shape=(4, 4, 1)))
    tokenizer = data.tokenizer_from("intensities-256")
    loaded = checkpoint.Loaded(net, {"unmasking": "linear"}, tokenizer, 0)
    loaded.predict = predict
    known, keep = noise(3, 4, 4, 1), pictures.kept_pixels("left", (4, 4, 1), 0)
    drawn = loaded.images(3, steps=4, known=known, keep=keep)
    assert (drawn[:, :, :2] == known[:, :, :2]).all() and (drawn != known).any()
    assert all((given == torch.from_numpy(keep).flatten()).all() for given in told)


def test_pictures():
    images = noise(3, 2, 2, 3)
    sheet = pictures.grid(images, across=2)
    assert sheet.shape == (6 * 24, 6 * 24, 3)                   # two rows of two, enlarged 24 times
    assert (sheet[0, 24] == images[0, 0, 1]).all() and (sheet[72, 0] == images[2, 0, 0]).all()
    code = prime.Code(256, 2)                                   # two digits of 16
    y = code.encode(torch.tensor([[200, 200, 200]]))
    y[0, 1, 1] = y[0, 2, 0] = y[0, 2, 1] = code.mask
    assert pictures.expected(code, y, (1, 3, 1)).flatten().tolist() == [200, 200, 128]


# -----------------------------------------------------------------------------
# the Frechet distance

def gaussian(N, mean, root, seed):
    """N points whose mean and covariance are exactly mean and root root^T"""
    x = np.random.default_rng(seed).standard_normal((N, len(mean)))
    x = x - x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ np.array(root).T + mean


def test_distance_of_two_gaussians():
    """One dimension: (m1 - m2)^2 + (s1 - s2)^2. Covariances that commute: the sum of that. Others:
    for S1 = 1 it is |m|^2 + sum (1 - sqrt(eigenvalue of S2))^2."""
    a, b = gaussian(50, [0, 0], np.eye(2), 0), gaussian(80, [3, 1], [[2, 0], [0, 5]], 1)
    assert frechet.distance(a, b) == pytest.approx(9 + 1 + 1 + 16)
    assert frechet.distance(a[:, :1], b[:, :1]) == pytest.approx(10)
    root = [[2.0, 0.0], [1.0, 0.5]]
    values = np.linalg.svd(root)[1]
    b = gaussian(80, [0, 0], root, 1)
    assert frechet.distance(a, b) == pytest.approx(((1 - values) ** 2).sum())
    assert frechet.distance(b, a) == pytest.approx(frechet.distance(a, b))


def test_distance_of_a_set_to_itself_and_shifted():
    x = np.random.default_rng(0).standard_normal((100, 5)) @ np.diag([1, 2, 3, 0, 1e-9])
    assert frechet.distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet.distance(x, x + [1, 0, 2, 0, 3]) == pytest.approx(14)
    with pytest.raises(Fail, match="two images or more"):
        frechet.distance(x[:1], x)


def test_principal_components():
    """All of them: a rotation, so distances are those of the pixels; fewer: the largest ones."""
    images = noise(100, 2, 3, 1)
    images[:, 0, 0] //= 50                                      # a pixel that hardly varies
    pixels = images.reshape(100, 6) / 255
    everything, most = frechet.Pixels(images), frechet.Pixels(images, most=5)
    spread = np.trace(np.cov(pixels, rowvar=False))
    assert np.trace(np.cov(everything(images), rowvar=False)) == pytest.approx(spread)
    assert most(images).shape == (100, 5)
    assert np.trace(np.cov(most(images), rowvar=False)) == pytest.approx(spread, rel=0.01)
    assert "5 principal components" in most.name


class Stub(torch.nn.Module):
    """In the place of the Inception network: mean colours"""
    def forward(self, x, return_features: bool = False):
        return x.float().flatten(2).mean(2)


def test_inception(tmp_path):
    path = str(tmp_path / "inception.pt")
    torch.jit.script(Stub()).save(path)
    features = frechet.Inception(path, "cpu")
    images = noise(7, 4, 4, 1)
    means = images.reshape(7, 16).mean(1)
    assert np.allclose(features(images, size=3), means[:, None].repeat(3, 1))
    assert path in features.name
    torch.save({"a": 1}, path)
    with pytest.raises(Fail, match="no TorchScript file of an Inception network"):
        frechet.Inception(path, "cpu")
    with pytest.raises(Fail, match="no TorchScript file"):
        frechet.Inception(str(tmp_path / "nothing.pt"), "cpu")
    torch.jit.script(torch.nn.Identity()).save(path)
    with pytest.raises(Fail, match="no TorchScript file"):
        frechet.Inception(path, "cpu")
