# AdamW with one cycle of the learning rate per training run (baseline, teacher, stage).
_base_ = '../speed.py'
seed = 0
__lr = 2e-3  # at the cycle's peak; two underscores: no setting of the recipe
schedule = dict(
    batch_size=8,  # learns more from the same images than 16: results/mini_*/search.json
    baseline=1000,
    arm=600,  # of every arm, split evenly over its stages
    teacher=5000,
    optimizer=dict(type='AdamW', lr=__lr, weight_decay=0.05),
    grad_clip=dict(max_norm=35, norm_type=2),
    lr=dict(policy='OneCycle', max_lr=__lr, pct_start=0.1, anneal_strategy='cos'),
    log_interval=25,
    checkpoint_interval=50,
    eval_interval=0,  # updates between evaluations during training; 0: at the end only
)
# workers: processes that load images, for each that trains; 'auto': by device and cores, 0 on the CPU.
# threads 0: one per core; jobs: arms that train side by side, which share the cores.
runtime = dict(device='auto', workers='auto', threads=0, jobs=2)
