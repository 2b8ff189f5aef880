//! Character sets: the binlog has text as the column stores it.

use crate::change::Value;

/// A character set whose bytes are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charset {
    /// UTF-8, of three or four bytes, and ASCII.
    Utf8,
    /// What MySQL calls latin1: Windows' 1252.
    Latin1,
    /// UTF-16 and UCS-2, the greater byte first.
    Utf16,
    /// UTF-16, the lesser byte first.
    Utf16le,
    /// UTF-32, the greatest byte first.
    Utf32,
    /// No text.
    Binary,
}

/// Windows' 1252 from 0x80 to 0x9f; what it leaves out stands for itself.
const CP1252: [u16; 32] = [
    0x20ac, 0x81, 0x201a, 0x0192, 0x201e, 0x2026, 0x2020, 0x2021, 0x02c6, 0x2030, 0x0160, 0x2039, 0x0152, 0x8d, 0x017d,
    0x8f, 0x90, 0x2018, 0x2019, 0x201c, 0x201d, 0x2022, 0x2013, 0x2014, 0x02dc, 0x2122, 0x0161, 0x203a, 0x0153, 0x9d,
    0x017e, 0x0178,
];

impl Charset {
    /// The character set of a name, if its bytes are understood.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "utf8mb4" | "utf8mb3" | "utf8" | "ascii" => Self::Utf8,
            "latin1" => Self::Latin1,
            "ucs2" | "utf16" => Self::Utf16,
            "utf16le" => Self::Utf16le,
            "utf32" => Self::Utf32,
            "binary" => Self::Binary,
            _ => return None,
        })
    }

    /// Stored bytes as a value; bytes that are no text of the character set are kept as they are.
    pub fn text(self, bytes: &[u8]) -> Value {
        let decoded = match self {
            Self::Utf8 => return utf8(bytes.to_vec()),
            Self::Latin1 => Some(bytes.iter().map(|byte| latin1(*byte)).collect()),
            Self::Utf16 => utf16(bytes, u16::from_be_bytes),
            Self::Utf16le => utf16(bytes, u16::from_le_bytes),
            Self::Utf32 => utf32(bytes),
            Self::Binary => return Value::Blob(bytes.to_vec()),
        };
        decoded.map_or_else(|| Value::InvalidText(bytes.to_vec()), Value::Text)
    }
}

/// Bytes as text, if they are.
pub fn utf8(bytes: Vec<u8>) -> Value {
    String::from_utf8(bytes).map_or_else(|e| Value::InvalidText(e.into_bytes()), Value::Text)
}

fn latin1(byte: u8) -> char {
    match byte {
        0x80..=0x9f => char::from_u32(u32::from(CP1252[usize::from(byte - 0x80)])).unwrap_or('\u{fffd}'),
        _ => char::from(byte),
    }
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Option<String> {
    let (pairs, odd) = bytes.as_chunks::<2>();
    let units = pairs.iter().map(|pair| unit(*pair));
    odd.is_empty().then(|| char::decode_utf16(units).collect::<Result<String, _>>().ok()).flatten()
}

fn utf32(bytes: &[u8]) -> Option<String> {
    let (quads, odd) = bytes.as_chunks::<4>();
    odd.is_empty().then(|| quads.iter().map(|quad| char::from_u32(u32::from_be_bytes(*quad))).collect()).flatten()
}
