"""What crosses a hospital's wall: the data, their encoding, messages, signatures, and its log.

    weights         named tensors and their arithmetic
    update          the global model one way, a site's update the other, and the check of an update
    encoding        updates and models to bytes and back (safetensors with a JSON header)
    compression/    smaller encodings of an update; a registry, one file per method
    messages        small messages besides models and updates, such as keys
    signing         who sent something: Ed25519 seals and certificates
    credentials     the federation's name and broker addresses, as a folder of credentials holds them
    audit_log       the signed, chained record of everything that crossed

To send something new, add a group of tensors or a scalar to `Update`; `federation/egress.py` lists what
may leave. To add a way to compress, add a file to `compression/`. A change to the bytes of `encoding`
needs a new `FORMAT`.
"""
