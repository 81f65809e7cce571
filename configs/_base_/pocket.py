# What the pocket twins of the paper's sequences share: data, schedule, the student's size, arms. Each adds its methods
# (distill/methods*.py), models and teachers.
_base_ = ['datasets/digits.py', 'schedules/pocket.py']
student = dict(label='student: ResNet-18, width 8')
arms = dict(
    none=dict(label='no teacher', teachers=[None]),
    direct=dict(label='teacher 2 only'),
    repeated=dict(label='teacher 2 → teacher 2'),
    progressive=dict(label='teacher 1 → teacher 2'),
    reverse=dict(label='teacher 2 → teacher 1'),
)
