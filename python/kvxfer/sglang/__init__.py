"""SGLang's PD disaggregation over kvxferd: ``--disaggregation-transfer-backend kvxfer``.

Installed beside SGLang, the package registers itself (:mod:`.plugin`, entry point group
``sglang.srt.plugins``); ``python -m kvxfer.sglang.launch_server`` does the same where entry points
are not seen. Nothing of SGLang is changed on disk.

:mod:`.manager` is the KVManager of a rank: it publishes the rank's KV pool, its states and its
metadata buffers at the node's daemon (:mod:`.geometry` says what they are made of, :mod:`.memory`
where they lie), and moves rooms through :class:`kvxfer.pd.Rank`. :mod:`.sender` and
:mod:`.receiver` are one request on the prefill and on the decode side; :mod:`.bootstrap` is the
HTTP server at which the decode side learns about the prefill side.
"""
