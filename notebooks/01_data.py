# %% [markdown]
# # 01 · Data
#
# **Question.** What do the detectors see, and how hard is it?
#
# A dataset is a folder in COCO format, which `data.root` names. Without `data.root` the data are the built-in *DigitScenes*: real
# handwritten digits on crops of real photographs. The digits differ in size, colour, contrast and rotation. They cover each other,
# and the border cuts some. Boxes are tight around the visible pixels. Training and validation scenes share no digits and no regions
# of photographs.
#
# **What to expect.** Eight validation images with their objects. Then counts of objects, by size and by class. As in COCO, an object
# is *small* below 32 x 32 pixels and *large* from 96 x 96 pixels on.

# %% tags=["parameters"]
recipe: str = 'configs/mini/retinanet_r50__r101_rx101.py'  # recipe file
seed: int = 0  # random seed of the run
cfg_options: str = ''  # overrides of the recipe: KEY VALUE pairs joined by an equals sign
work_dir: str = ''  # run directory; empty: runs, recipe, seed

# %%
from mtpd import load_recipe, plots
from mtpd.analysis import dataset_statistics, sample_images
from mtpd.report import markdown_table, show_sentences

plan = load_recipe(recipe, cfg_options, seed)
examples = sample_images(plan, 'val', 8)
masks = [example['masks'] for example in examples]

# %% [markdown]
# ## Images with their objects
#
# Each object has its box. Masks are tinted, where the dataset has them.

# %%
plots.scenes(
    [example['image'] for example in examples],
    [example['boxes'] for example in examples],
    [example['labels'] for example in examples],
    None if any(mask is None for mask in masks) else masks,
    plan.classes,
)

# %% [markdown]
# ## Counts

# %%
counted = dataset_statistics(plan)
markdown_table(
    [
        {
            'split': split,
            'images': statistics['images'],
            'objects': statistics['objects'],
            'objects an image': statistics['objects'] / statistics['images'],
            'crowd regions': statistics['crowds'],
            'image sizes': ', '.join(statistics['sizes']),
        }
        for split, statistics in counted.items()
    ]
)

# %%
plots.size_histogram({split: statistics['areas'] for split, statistics in counted.items()})

# %%
plots.class_counts(
    {split: statistics['counts'] for split, statistics in counted.items()}, plan.classes
)

# %%
areas = counted['val']['areas']
small = sum(area < 32**2 for area in areas)
show_sentences(
    f'**Conclusion.** The dataset has {counted["train"]["images"]:,} training images,',
    f'{counted["val"]["images"]:,} validation images and {len(plan.classes)} classes.',
    f'{small / max(len(areas), 1):.0%} of the validation objects are small (under 32 x 32 pixels).',
)

# %% [markdown]
# **Try this**
#
# - For larger DigitScenes, set `cfg_options` to `'data.scenes.size=192 image.scale=192'`. They are made at once.
# - For a COCO-format dataset of your own, set `cfg_options` to `'data.root=FOLDER'`.
#
# Next: 02, the detectors.
