from dataclasses import replace


def lampbert():
    known = FAMILIES["roberta"]
    return replace(
        known,
        keys={key.replace("roberta.", "lamp."): ours for key, ours in known.keys.items()},
        names={**known.names, "hidden_size": "width", "num_hidden_layers": "floors"},
    )
