from aucseg.losses.aucseg import AUCSegLoss
def build_loss(name, class_counts=None, **o):
    if name == "ce": return AUCSegLoss(auc_weight=0.0, **o)
    return AUCSegLoss(**o)
