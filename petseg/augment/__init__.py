"""Paired augmentation: one random draw per sample moves picture and labels together, batched, on the device.

draws.py says what happens to which sample, as a function of (seed, epoch, sample) alone, so that the pixels do not
depend on the number of processes, the batch, or a resume; batch.py carries it out with warp.py and appearance.py.
Flips are exact; an affine map and an elastic displacement make one field, so that a picture is interpolated once. The
displacement has the statistics of torchvision's ElasticTransform (uniform noise in [-1, 1], blurred with a Gaussian of
`sigma` pixels, times `alpha / 2` pixels) but is summed from Gaussian bumps on a coarse grid: two small matrix products
instead of a blur of the full field. A hole (cutout) is in the picture alone: its mask, and so loss and metrics, stay.

In mode "add" a step's batch grows by the copies drawn in it, while its optimizer steps, its samples in the ledger and
its sum of weights stay: in expectation, adding at probability p weighs pictures as replacing at p / 2 does, but each
original is seen in each epoch. Batches then differ in size, by up to twice, and need the memory; BatchNorm sees both.

python -m petseg.augment --shards data/shards --policy strong --out sheet.png
"""
