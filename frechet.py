"""How far are drawn images from real ones? The Frechet distance between two sets of features (FID,
arXiv 1706.08500): that between Gaussians with the sets' means m and covariances S,

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))

One worked number: N(0, 1) and N(3, 4) are (0 - 3)^2 + (1 - 2)^2 = 10 apart. It depends on the
features, and falls with the number of images: compare only where both are equal.
"""
import numpy as np
import torch

from common import Fail, say

MOST = 50_000       # training images that samples are compared with


def distance(a, b):
    """The Frechet distance of the features a (N, D) and b (M, D), float64"""
    if min(len(a), len(b)) < 2:
        raise Fail("a Frechet distance needs two images or more: raise --num_samples")
    S1, S2 = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(S1)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T            # S1^(1/2)
    # S1 S2 has the eigenvalues of the symmetric S1^(1/2) S2 S1^(1/2)
    shared = np.sqrt(np.linalg.eigvalsh(root @ S2 @ root).clip(0)).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(S1 + S2) - 2 * shared)


class Pixels:
    """The first 64 principal components of the training pixels (of 10,000 images): no download, but
    only for comparisons between models of one data set"""

    def __init__(self, images, most=64):
        x = flat(images[:10_000])
        self.mean = x.mean(0)
        _, vectors = np.linalg.eigh(np.cov(x, rowvar=False))        # in ascending order
        self.axes = vectors[:, :-most - 1:-1]                       # (D, most)
        self.name = f"the first {self.axes.shape[1]} principal components of the training pixels"

    def __call__(self, images):
        """(N, H, W, C) uint8 -> (N, 64) float64"""
        return (flat(images) - self.mean) @ self.axes


def flat(images):
    return images.reshape(len(images), -1) / 255.0


class Inception:
    """The network of the literature's FID as a TorchScript file, such as inception-2015-12-05.pt of
    StyleGAN: it takes (N, 3, H, W) uint8, makes that 299 x 299 itself (assumption: not tried here),
    and answers with 2048 features. TorchScript is run: name only files that you trust."""

    def __init__(self, path, device):
        self.name, self.device = f"the Inception network of {path}", device
        try:
            self.net = torch.jit.load(path, map_location=device).eval()
            self(np.zeros((2, 32, 32, 3), dtype=np.uint8))
        except Exception as e:                          # torch raises many kinds
            raise Fail(f"--inception {path} is no TorchScript file of an Inception network "
                       f"({type(e).__name__}): get inception-2015-12-05.pt") from None

    @torch.no_grad()
    def __call__(self, images, size=100):
        """(N, H, W, C) uint8 -> (N, D) float64"""
        features = []
        for first in range(0, len(images), size):
            x = torch.from_numpy(images[first:first + size]).permute(0, 3, 1, 2)
            x = x.expand(-1, 3, -1, -1).to(self.device)             # grey: three times the same
            answer = self.net(x, return_features=True)              # (size, D)
            features.append(answer.double().cpu().numpy())
        return np.concatenate(features)


def first_of(documents, most, shape):
    """Up to `most` images: (N, H, W, C) uint8"""
    count = min(most, len(documents))
    images = np.stack([documents.read(i).astype(np.uint8) for i in range(count)])
    return images.reshape(-1, *shape)


def judge(loaded, dataset, args, drawn):
    """Print how far samples are from the training images. drawn: (samples, the first columns of a
    row) for each sampler and number of steps. -> rows of evaluate.py's csv"""
    shape, rows = loaded.config.shape, []
    real = first_of(dataset.train, MOST, shape)
    if args.inception:
        features = Inception(args.inception, loaded.net.head.weight.device)
    else:
        features = Pixels(real)
    of_real, of_val = features(real), features(first_of(dataset.val, args.num_samples, shape))
    say(f"  Frechet distance to {len(real):,} training images, in {features.name}; that of "
        f"{len(of_val):,} validation images is {distance(of_val, of_real):.4g}")
    for samples, row in drawn:
        images = np.array(samples, dtype=np.uint8).reshape(-1, *shape)
        row |= {"frechet": distance(features(images), of_real), "features": features.name}
        say(f"  {row['sampler']}, {row['steps']} steps, {row['calls']:.1f} calls: "
            f"{row['frechet']:.4g} ({row['seconds']:.1f} s)")
        rows.append(row)
    return rows
