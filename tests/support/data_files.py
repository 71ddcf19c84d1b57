"""Data sets written as their authors distribute them, by code that knows nothing of the loaders."""

import json
import pickle

import numpy as np
from PIL import Image

COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))


def picture(rng, label, size=(40, 36)):
    """A noisy picture of its class's colour; size is (width, height)."""
    noise = rng.normal(0, 30, (size[1], size[0], 3))
    return Image.fromarray(np.clip(noise + COLOURS[label], 0, 255).astype(np.uint8))


def write_class_folders(root, counts, *, names=("ant", "bee", "cat"), suffix="jpg"):
    rng = np.random.default_rng(1)
    for label, (name, count) in enumerate(zip(names, counts, strict=True)):
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(count):
            picture(rng, label).save(folder / f"{number:03d}.{suffix}", quality=92)
    return root


def write_imagenet_lt(root, train=(12, 6, 2), val=(2, 2, 2), test=(3, 3, 3)):
    """TRAIN.txt, VAL.txt, TEST.txt of `path label` lines beside train/, val/, test/; returns the
    specification.
    """
    rng = np.random.default_rng(2)
    lists = []
    for split, counts in (("train", train), ("val", val), ("test", test)):
        lines = []
        for label, count in enumerate(counts):
            wnid = f"n0{label}"
            (root / split / wnid).mkdir(parents=True)
            for number in range(count):
                name = f"{split}/{wnid}/{number}.JPEG"
                picture(rng, label).save(root / name, "JPEG")
                lines.append(f"{name} {label}")
        lists.append(root / f"ImageNet_LT_{split}.txt")
        lists[-1].write_text("\n".join(lines) + "\n")
    return f"list:{','.join(map(str, lists))}@{root}"


def write_inaturalist(root, train=(12, 6, 2), val=(2, 2, 2)):
    rng = np.random.default_rng(3)
    identifier = 100
    for split, counts in (("train2018", train), ("val2018", val)):
        images, annotations = [], []
        for label, count in enumerate(counts):
            for number in range(count):
                name = f"train_val2018/Aves/{label}/{split}-{number}.jpg"
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                picture(rng, label).save(root / name)
                images.append({"id": identifier, "file_name": name, "width": 40, "height": 36})
                annotations.append(
                    {"id": identifier, "image_id": identifier, "category_id": 10 * label}
                )
                identifier += 1
        document = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 10 * label, "name": f"species {label}"} for label in range(3)],
        }
        (root / f"{split}.json").write_text(json.dumps(document))
    return root


def write_cifar10(root, per_class=4):
    rng = np.random.default_rng(4)
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        labels = [label for label in range(10) for _ in range(per_class)]
        pixels = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        pixels[:, :1024] = np.array(labels)[:, None] * 20  # the red plane tells the class
        batch = {b"batch_label": name.encode(), b"labels": labels, b"data": pixels}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {b"label_names": [f"kind {n}".encode() for n in range(10)], b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return folder


def write_cifar100(root, per_class=2):
    rng = np.random.default_rng(5)
    folder = root / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        labels = [label for label in range(100) for _ in range(per_class)]
        pixels = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        batch = {
            b"fine_labels": labels,
            b"coarse_labels": [label // 5 for label in labels],
            b"data": pixels,
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {
        b"fine_label_names": [f"fine {n}".encode() for n in range(100)],
        b"coarse_label_names": [f"coarse {n}".encode() for n in range(20)],
    }
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    return folder


WORDS = (("good", "great", "fine"), ("bad", "awful", "poor"), ("odd", "strange", "weird"))
FILLERS = ("the", "It", "was", "a", "film,", "and")


def texts(counts, seed=6):
    """(texts, labels): each text has a word of its class, once with a capital, once with a full
    stop.
    """
    rng = np.random.default_rng(seed)
    found, labels = [], []
    for label, count in enumerate(counts):
        for number in range(count):
            words = [str(w) for w in rng.choice(FILLERS, 5)]
            own = str(rng.choice(WORDS[label]))
            words.insert(int(rng.integers(0, 5)), own.title() if number % 3 == 0 else own)
            found.append(" ".join(words) + "." * (number % 2))
            labels.append(("positive", "negative", "peculiar")[label])
    return found, labels
