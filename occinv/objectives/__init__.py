"""Objectives: one file for each method, a row (T1, T2, f, target, M) of Eq. (1).

`OBJECTIVES` maps each `objective.name` of a config to its class. An objective outside the library
needs no entry: its name is `module:Class` in the same form.
"""

OBJECTIVES = {
    "mae": "occinv.objectives.mae:MAE",
    "rmae": "occinv.objectives.rmae:RMAE",
    "cmae": "occinv.objectives.cmae:CMAE",
    "mocov3": "occinv.objectives.mocov3:MoCoV3",
    "dino": "occinv.objectives.dino:DINO",
    "ibot": "occinv.objectives.ibot:IBOT",
    "msn": "occinv.objectives.msn:MSN",
    "beit": "occinv.objectives.beit:BEiT",
    "cae": "occinv.objectives.cae:CAE",
    "simmim": "occinv.objectives.simmim:SimMIM",
    "maskfeat": "occinv.objectives.maskfeat:MaskFeat",
    "data2vec": "occinv.objectives.data2vec:Data2Vec",
    "ijepa": "occinv.objectives.ijepa:IJEPA",
    "grid": "occinv.objectives.grid:Grid",
    "vq": "occinv.objectives.vq:VQAutoencoder",
    "classification": "occinv.objectives.classification:Classification",
    "linear_probe": "occinv.objectives.linear_probe:LinearProbe",
}
