"""Objectives: one file for each row of the table (T1, T2, f, target, M).

`OBJECTIVES` says where the class of each name in a config's `objective.name` lives. An objective
outside the library needs no entry: its name is `module:Class`, in the same form.
"""

OBJECTIVES = {
    "mae": "occinv.objective.reconstruction:MaskedAutoencoder",
    "rmae": "occinv.objective.relaxed:RelaxedAutoencoder",
    "cmae": "occinv.objective.contrastive:ContrastiveAutoencoder",
    "mocov3": "occinv.objective.momentum_contrast:MomentumContrast",
    "dino": "occinv.objective.self_distillation:SelfDistillation",
    "ibot": "occinv.objective.masked_self_distillation:MaskedSelfDistillation",
    "beit": "occinv.objective.token_prediction:TokenPrediction",
    "cae": "occinv.objective.context_autoencoder:ContextAutoencoder",
    "data2vec": "occinv.objective.teacher_regression:TeacherRegression",
    "ijepa": "occinv.objective.joint_embedding:JointEmbeddingPrediction",
    "grid": "occinv.objective.grid:Grid",
    "vq": "occinv.objective.vector_quantised:VectorQuantisedAutoencoder",
    "classification": "occinv.objective.classification:Classification",
    "linear_probe": "occinv.objective.linear_probe:LinearProbe",
}
