# %% [markdown]
# # 01 · Data
#
# **Question.** What do the detectors see, and how hard is it?
#
# The built-in *DigitScenes* put real handwritten digits on crops of real photographs. Digits differ in
# size, colour, contrast and rotation, cover each other, and some are cut by the border. Training and
# validation share neither digits nor photograph regions. Any COCO-format folder can take their place
# (`data.root`).
#
# **What to expect.** Eight validation images with their objects, then how many there are, how large, and of which class. An object
# is *small* under 32 x 32 pixels and *large* from 96 x 96 on, COCO's terms.

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
# Boxes are tight around what is visible; where the dataset has masks, they are tinted.

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
    f'**Conclusion.** {counted["train"]["images"]:,} images to learn from and',
    f'{counted["val"]["images"]:,} to measure on, with {len(plan.classes)} classes.',
    f'{small / max(len(areas), 1):.0%} of the validation objects are small (under 32 x 32 pixels).',
)

# %% [markdown]
# **Try this**
#
# - Set `cfg_options` to `'data.scenes.size=192 image.scale=192'`: larger scenes are made on the spot.
# - Set it to `'data.root=FOLDER'` for a COCO-format dataset of your own.
#
# Next: 02, the detectors.
