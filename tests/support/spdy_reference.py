"""SPDY/3 read and written slowly and literally, from its description alone: what `criw.spdy.frames` is held against.

It takes a whole conversation at once and shares no code with the package, nor its dictionary. A frame is a tuple: its
name in lower case, then what is in it. Data frames stay whole, the empty ones without FIN included.
"""

import base64
import hashlib
import zlib
from collections.abc import Mapping, Sequence

Value = int | bool | bytes | dict[bytes, bytes]
Told = tuple[str | Value, ...]

_PACKED = (
    b"c-m!D+j84B5Y^POlu47cNqzv&Eg6F(=s2D6gL`r7blhYbclr#0D+)0PARwqqzP`Jl<SOlqBpw{><?Mx;OeS;Zqjt8ROeWJ6$cCQY^%0*"
    b"ZexS#!0Rs^boyH&)ftgeaJY7B;QLa`p^gzrvdj_m>jkfI(Wu$Ef*;0h3dnzCWl>B7mPo*(#lMIHqazTHVB##Is)e3UuYz)pI@fe{6wZD"
    b"Es7hq$)kUa(Z_HaJZ@xUDkdG^48ZR6?-E2j?0zdmqXQztF^W0HTIJ?=c6r;SV<n?jV7c?MgLQW4D&>5xjEE`#e*-^YGG(#yP)QIUw}gi"
    b"-fWLzDN~rnWyt(mD$dR^)Mz@DlN0|L<dDA0I-I&rw-VI=Ri4E^K6INYTs(*>)1q3m@Eem(viiEUm_JUjEA-kLL8CVIE)!0RnX_Kn!TQj"
    b"OjS*A*>VnDn**(Dru95=Ll_&e#fJl555huA=AeL`sO$-OHG=tW!TZatTpMJqjbBU?q;+3ui#k+D3!`SY14Mj`Y7X&YArcu?|!EkD6AhV"
    b"dGy=e-TSlRRY4v@FsUcQ!e~W8aKUl^+`Ue+?g4x*jb5ij*pF7*g7bnGC4I`0*Cju%IInnF@v7pY;&nyLYr#vwYr)S2;S0gvh=Plv5Jf4"
    b"9N)$pAwJ6R-@w(<^%|%V2D)xu7`PJBatO66W8;jHH(i}=I(186kE@H(CcI(#Au=jul7Adn6Sn-dtVSmD>0s1J=<}Z5~CNu(5T)VK)O#@"
    b"b>a1n{YHZ?llVBBD(VIR^Y*)JiuP-6(Py6L=u4wC@dR>?#wpy+EHvs@T>D=oW*1-q4jUHO2|9eX=i{2F#OwCLg^d#56XTeF`*G0uNTA1"
    b"uRW>~4UJ{S6JG)sV64pfmPCM*JD@_Sf4xwHoX_-bdKRvsLU&raRo3GjH2H`sfd+)yqtJZ}j*goNdwii!=FuPi%_jjnsC8AF-ZZ1?^)tu"
    b"7wYJjjKlQ5k|gjKWm>gur$bJeWO<U|HaE8F7u1SLH91dxTxRcMMiw~T?Y2kC4cn~<Ho1L"
)
DICTIONARY = zlib.decompress(base64.b85decode(_PACKED))
assert hashlib.sha256(DICTIONARY).hexdigest() == "51d27341373f923f3cd88e1eb7162aeaa3723d7585ff2399201dc06498407f02"


class Refused(Exception):  # noqa: N818
    """The conversation breaks the protocol."""


def number(data: bytes) -> int:
    total = 0
    for byte in data:
        total = total * 256 + byte
    return total


def require(condition: object, why: str) -> None:
    if not condition:
        raise Refused(why)


def read_block(block: bytes, inflater: "zlib._Decompress") -> dict[bytes, bytes]:
    require(len(block) <= 65536, "compressed size")
    try:
        plain = inflater.decompress(block)
    except zlib.error as err:
        raise Refused("corrupt") from err
    require(len(plain) <= 262144, "inflated size")
    require(not inflater.eof, "end of compression")
    require(len(plain) >= 4, "no count")
    count, rest = number(plain[:4]), plain[4:]
    require(count <= 1000, "too many headers")
    found: dict[bytes, bytes] = {}
    for _ in range(count):
        pair = []
        for _ in range(2):
            require(len(rest) >= 4, "no length")
            length, rest = number(rest[:4]), rest[4:]
            require(len(rest) >= length, "too short")
            text, rest = rest[:length], rest[length:]
            pair.append(text)
        name, value = pair
        require(name not in found, "twice")
        require(not any(65 <= byte <= 90 for byte in name), "upper case")
        found[name] = value
    require(not rest, "too long")
    return found


def read_all(wire: bytes) -> tuple[list[Told], str | None]:
    """The frames of a conversation's one direction, and why it is refused behind them; None if it is right.

    A frame that is not complete is left out, unless its head alone is wrong.
    """
    inflater = zlib.decompressobj(zdict=DICTIONARY)
    told: list[Told] = []
    try:
        while len(wire) >= 8:
            head, length = wire[:8], number(wire[5:8])
            frame = read_one(head, wire[8 : 8 + length], length, inflater)
            if frame is None:
                break
            told.append(frame)
            wire = wire[8 + length :]
    except Refused as err:
        return told, str(err)
    return told, None


def read_one(head: bytes, body: bytes, length: int, inflater: "zlib._Decompress") -> Told | None:
    flags, fin = head[4], bool(head[4] & 1)
    whole = len(body) == length
    if head[0] < 128:
        require(number(head[:4]), "stream 0")
        return ("data", number(head[:4]), body, fin) if whole else None
    kind = number(head[2:4])
    require(kind in {1, 2, 3, 4, 6, 7, 8, 9}, "type")
    require(flags == 0 or kind not in {6, 7, 9}, "flags")
    fixed = {3: 8, 6: 4, 7: 8, 9: 8}
    if kind in fixed:
        require(length == fixed[kind], "size")
    elif kind == 4:
        require(4 <= length <= 8004, "size")
    else:
        require((10 if kind == 1 else 4) <= length <= 65536 + (10 if kind == 1 else 4), "size")
    if not whole:
        return None
    first, second = number(body[:4]), number(body[4:8])
    if kind in {1, 2, 3, 8}:
        require(first, "stream 0")
    if kind == 1:
        return ("syn_stream", first, read_block(body[10:], inflater), fin, bool(flags & 2))
    if kind == 2:
        return ("syn_reply", first, read_block(body[4:], inflater), fin)
    if kind == 8:
        return ("headers", first, read_block(body[4:], inflater), fin)
    if kind == 3:
        require(second, "status 0")
        return ("rst_stream", first, second)
    if kind == 4:
        require(length == 4 + 8 * first, "settings")
        return ("settings",)
    if kind == 6:
        require(first, "ping 0")
        return ("ping", first)
    return ("goaway", first, second) if kind == 7 else ("window_update",)


def write_all(frames: Sequence[Told], *, level: int = 6) -> bytes:
    deflater = zlib.compressobj(level, zlib.DEFLATED, 15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)

    def block(headers: Value | str) -> bytes:
        assert isinstance(headers, dict)
        plain = u32(len(headers)) + b"".join(u32(len(k)) + k + u32(len(v)) + v for k, v in headers.items())
        return deflater.compress(plain) + deflater.flush(zlib.Z_SYNC_FLUSH)

    wire = b""
    for name, *rest in frames:
        if name == "data":
            stream, data, fin = rest
            assert isinstance(data, bytes)
            wire += u32(stream) + bytes([bool(fin)]) + u32(len(data))[1:] + data
        elif name == "syn_stream":
            stream, headers, fin, unidirectional = rest
            body = u32(stream) + bytes(6) + block(headers)
            wire += control(1, bool(fin) + 2 * bool(unidirectional), body)
        elif name in {"syn_reply", "headers"}:
            stream, headers, fin = rest
            wire += control(2 if name == "syn_reply" else 8, bool(fin), u32(stream) + block(headers))
        elif name in {"rst_stream", "goaway", "window_update"}:
            kind = {"rst_stream": 3, "goaway": 7, "window_update": 9}[str(name)]
            wire += control(kind, 0, b"".join(u32(value) for value in rest))
        elif name == "ping":
            wire += control(6, 0, u32(rest[0]))
        else:
            wire += control(4, 0, u32(len(rest)) + b"".join(b"\0\0\0\7" + u32(value) for value in rest))
    return wire


def u32(value: Value | str) -> bytes:
    assert isinstance(value, int)
    return bytes([value >> 24 & 255, value >> 16 & 255, value >> 8 & 255, value & 255])


def control(kind: int, flags: int, body: bytes) -> bytes:
    return bytes([0x80, 3, 0, kind, flags]) + u32(len(body))[1:] + body


def texts(headers: Mapping[str, str]) -> dict[bytes, bytes]:
    return {name.encode("latin-1"): value.encode("latin-1") for name, value in headers.items()}
