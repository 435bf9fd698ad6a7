"""Who may bring machine code: ed25519 keys of this user, and the public keys this user trusts.

A key lives in two files of a private folder: NAME.key (PEM, for its owner alone) and, of every key that is trusted,
NAME.pub (64 hex digits). A key made here is trusted here.
"""
from __future__ import annotations

import importlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ingot.engine.code import Bundle, Signature
from ingot.errors import EngineError, InputError, UnsupportedError


@dataclass(frozen=True)
class Key:
    """A key of the folder: its name, its public half in hex, and whether its private half is here."""

    name: str
    public: str
    private: bool

    @property
    def short(self) -> str:
        return self.public[:16]


def _ed25519() -> Any:
    try:
        return importlib.import_module("cryptography.hazmat.primitives.asymmetric.ed25519")
    except ImportError as error:
        raise UnsupportedError("signing needs the package cryptography", why=(str(error),),
                               mend="pip install 'ingot[cuda]'") from None


def _serialization() -> Any:
    return importlib.import_module("cryptography.hazmat.primitives.serialization")


def _name(text: str) -> str:
    if not text or not all(c.isalnum() or c in "-_" for c in text):
        raise InputError(f"{text!r} cannot name a key", mend="use letters, digits, - and _")
    return text


def keys(folder: Path) -> tuple[Key, ...]:
    """The keys of the folder, in order of their names."""
    if not folder.is_dir():
        return ()
    return tuple(Key(p.stem, p.read_text().strip(), p.with_suffix(".key").exists())
                 for p in sorted(folder.glob("*.pub")))


def new_key(folder: Path, name: str = "own") -> Key:
    """Make a key, trusted here. Raises InputError where the name is taken."""
    path, ed = folder / f"{_name(name)}.key", _ed25519()
    if path.exists() or path.with_suffix(".pub").exists():
        raise InputError(f"there is a key '{name}' already", where=str(folder), mend="choose another name")
    s = _serialization()
    private = ed.Ed25519PrivateKey.generate()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(private.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
    public = private.public_key().public_bytes(s.Encoding.Raw, s.PublicFormat.Raw).hex()
    path.with_suffix(".pub").write_text(public + "\n")
    return Key(name, public, True)


def trust_key(folder: Path, public: str, name: str) -> Key:
    """Trust the owner of a public key, given as 64 hex digits or as a file that holds them."""
    text = Path(public).read_text() if len(public) != 64 and Path(public).is_file() else public
    text = text.strip().lower()
    if len(text) != 64 or any(c not in "0123456789abcdef" for c in text):
        raise InputError(f"{public!r} is no public key", mend="give 64 hex digits, or the .pub file of the key's owner")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{_name(name)}.pub"
    if path.exists() and path.read_text().strip() != text:
        raise InputError(f"another key is called '{name}'", where=str(folder), mend="choose another name")
    path.write_text(text + "\n")
    return Key(name, text, path.with_suffix(".key").exists())


def distrust_key(folder: Path, name: str) -> None:
    """Forget a key, its private half included. Raises InputError where there is none of that name."""
    path = folder / f"{_name(name)}.pub"
    if not path.exists():
        raise InputError(f"no key is called '{name}'", where=str(folder),
                         mend=f"known: {', '.join(k.name for k in keys(folder)) or 'none'}")
    path.unlink()
    path.with_suffix(".key").unlink(missing_ok=True)


def signed(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle signed with the first private key of the folder; itself where there is none."""
    own = next((k for k in keys(folder) if k.private), None)
    if own is None or not bundle.kernels:
        return bundle
    private = _serialization().load_pem_private_key((folder / f"{own.name}.key").read_bytes(), None)
    return replace(bundle, signature=Signature(own.public, private.sign(bundle.digest).hex()))


def require_trust(bundle: Bundle, folder: Path, *, trust: bool = False) -> None:
    """Raises EngineError unless the code was signed by a trusted key, unchanged; `trust` takes unsigned code, too."""
    mend = "ingot key trust KEY, if you trust its owner; or --trust for this once"
    if bundle.signature is None:
        if not trust:
            raise EngineError("the engine carries device code that nobody has signed", mend=(
                "sign it where it is built (ingot key new, then build again), or --trust for this once"))
        return
    ed, signature = _ed25519(), bundle.signature
    error = importlib.import_module("cryptography.exceptions").InvalidSignature
    try:
        public = ed.Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.key))
        public.verify(bytes.fromhex(signature.value), bundle.digest)
    except (error, ValueError):
        raise EngineError("the engine's device code is not what was signed", where=f"key {signature.key[:16]}",
                          why=("a byte of it, or of how it is launched, was changed after it was signed",),
                          mend="copy the file again from its source, or build the engine anew") from None
    if not trust and all(k.public != signature.key for k in keys(folder)):
        raise EngineError("the engine carries device code by a key that is not trusted here",
                          where=f"key {signature.key}", mend=mend)


__all__ = ["Key", "distrust_key", "keys", "new_key", "require_trust", "signed", "trust_key"]
