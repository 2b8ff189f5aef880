//! One value of a row, by its column's type.

use std::sync::Arc;

use super::{
    bytes::{Bytes, corrupt},
    table_map::MapColumn,
};
use crate::{
    Error, Result,
    change::Value,
    mysql::{
        declared::{Declared, Family},
        json::json_text,
        text::Charset,
        value::{date, datetime, float, instant, time, unsigned},
    },
};

/// How a column's values are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    Integer {
        size: usize,
        unsigned: bool,
    },
    Float,
    Double,
    Decimal {
        precision: usize,
        scale: usize,
    },
    Bit {
        size: usize,
    },
    Year,
    Date,
    Time {
        digits: usize,
    },
    Datetime {
        digits: usize,
    },
    Timestamp {
        digits: usize,
    },
    /// Of tables older than fractions of a second.
    OldTime,
    OldDatetime,
    OldTimestamp,
    Text {
        length_size: usize,
        charset: Charset,
    },
    /// Bytes, filled up to a length with zeros: the binlog leaves them out.
    Blob {
        length_size: usize,
        fill: usize,
    },
    Enum {
        size: usize,
        members: Arc<Vec<String>>,
    },
    Set {
        size: usize,
        members: Arc<Vec<String>>,
    },
    Json {
        length_size: usize,
    },
    Uuid {
        length_size: usize,
    },
    Inet4 {
        length_size: usize,
    },
    Inet6 {
        length_size: usize,
    },
}

impl Cell {
    /// How values are read of a column that the binlog describes so, and that is declared so. `charset` is the one that
    /// the catalog has, for binlogs that tell none.
    ///
    /// # Errors
    /// In words, where the two do not fit.
    pub fn new(column: &MapColumn, declared: &Declared, charset: Option<Charset>) -> Result<Self, String> {
        let family = declared.family().ok_or_else(|| format!("its type {} is not known", declared.base))?;
        let misfit = || format!("it is {} in the catalog and of the type {} in the binlog", declared.base, column.kind);
        let unsigned = column.unsigned.unwrap_or(declared.unsigned);
        let integer = |size| Self::Integer { size, unsigned };
        let digits = usize::from(column.meta[0]);
        let old = declared.numbers.first().is_some_and(|digits| *digits > 0);
        let old = |cell| match old {
            false => Ok(cell),
            true => Err("it keeps fractions of a second in the old way: ALTER TABLE ... FORCE".to_owned()),
        };
        let size = column.meta_number();
        Ok(match (family, column.kind) {
            (Family::Integer, 1) => integer(1),
            (Family::Integer, 2) => integer(2),
            (Family::Integer, 9) => integer(3),
            (Family::Integer, 3) => integer(4),
            (Family::Integer, 8) => integer(8),
            (Family::Real, 4) => Self::Float,
            (Family::Real, 5) => Self::Double,
            (Family::Decimal, 246) => {
                let [precision, scale] = column.meta.map(usize::from);
                if precision == 0 || precision > 65 || scale > precision {
                    return Err(misfit());
                }
                Self::Decimal { precision, scale }
            }
            (Family::Bit, 16) => {
                let [bits, bytes] = column.meta.map(usize::from);
                Self::Bit { size: (bytes + usize::from(bits > 0)).min(8) }
            }
            (Family::Year, 13) => Self::Year,
            (Family::Date, 10 | 14) => Self::Date,
            (Family::Time, 19) if digits <= 6 => Self::Time { digits },
            (Family::Datetime, 18) if digits <= 6 => Self::Datetime { digits },
            (Family::Timestamp, 17) if digits <= 6 => Self::Timestamp { digits },
            (Family::Time, 11) => old(Self::OldTime)?,
            (Family::Datetime, 12) => old(Self::OldDatetime)?,
            (Family::Timestamp, 7) => old(Self::OldTimestamp)?,
            (Family::Enum, 247) => Self::Enum { size: size.clamp(1, 2), members: members(column, declared, charset)? },
            (Family::Set, 248) => Self::Set { size: size.clamp(1, 8), members: members(column, declared, charset)? },
            (Family::Json, 245) => Self::Json { length_size: digits.clamp(1, 4) },
            (Family::Geometry, 255 | 252) => Self::Blob { length_size: digits.clamp(1, 4), fill: 0 },
            (Family::Bytes | Family::Json, 15 | 253 | 254 | 242 | 252) => {
                let length_size = match column.kind {
                    242 | 252 => digits.clamp(1, 4),
                    _ => 1 + usize::from(size > 255),
                };
                match declared.base.as_str() {
                    "uuid" => Self::Uuid { length_size },
                    "inet4" => Self::Inet4 { length_size },
                    "inet6" => Self::Inet6 { length_size },
                    "binary" => Self::Blob { length_size, fill: size },
                    base if base.ends_with("blob") || base == "varbinary" => Self::Blob { length_size, fill: 0 },
                    _ => {
                        let charset = charset.ok_or("its character set is not understood")?;
                        Self::Text { length_size, charset }
                    }
                }
            }
            (_, 140 | 141) => return Err("it is COMPRESSED, which is not supported".into()),
            _ => return Err(misfit()),
        })
    }

    /// Reads a value.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn read(&self, bytes: &mut Bytes<'_>) -> Result<Value> {
        Ok(match self {
            Self::Integer { size, unsigned: true } => unsigned(bytes.le(*size)?),
            Self::Integer { size, .. } => {
                let shift = 64 - 8 * *size as u32;
                Value::Integer((bytes.le(*size)? << shift) as i64 >> shift)
            }
            Self::Float => float(f32::from_bits(bytes.le(4)? as u32)),
            Self::Double => Value::Real(f64::from_bits(bytes.le(8)?)),
            Self::Decimal { precision, scale } => Value::Text(decimal(bytes, *precision, *scale)?),
            Self::Bit { size } => unsigned(bytes.be(*size)?),
            Self::Year => Value::Integer(match bytes.u8()? {
                0 => 0,
                years => 1900 + i64::from(years),
            }),
            Self::Date => {
                let packed = bytes.le(3)? as u32;
                Value::Text(date(packed >> 9, packed >> 5 & 15, packed & 31))
            }
            Self::Time { digits } => {
                let fraction_size = digits.div_ceil(2);
                let packed = bytes.be(3 + fraction_size)? as i64 - (0x80_0000 << (8 * fraction_size));
                let (negative, packed) = (packed < 0, packed.unsigned_abs());
                let fraction = packed & ((1 << (8 * fraction_size)) - 1);
                let whole = (packed >> (8 * fraction_size)) as u32;
                let micros = micros(fraction, fraction_size);
                Value::Text(time(negative, whole >> 12 & 0x3ff, whole >> 6 & 63, whole & 63, micros))
            }
            Self::Datetime { digits } => {
                let packed = bytes.be(5)?.wrapping_sub(0x80_0000_0000);
                let part = |shift: u32, mask: u64| (packed >> shift & mask) as u32;
                let months = part(22, 0x1_ffff);
                let parts = [months / 13, months % 13, part(17, 31), part(12, 31), part(6, 63), part(0, 63)];
                Value::Text(datetime(parts, fraction(bytes, *digits)?, false))
            }
            Self::Timestamp { digits } => {
                let seconds = bytes.be(4)? as u32;
                Value::Text(instant(seconds, fraction(bytes, *digits)?))
            }
            Self::OldTime => {
                let packed = (bytes.le(3)? << 40) as i64 >> 40;
                let (negative, packed) = (packed < 0, packed.unsigned_abs() as u32);
                Value::Text(time(negative, packed / 10_000, packed / 100 % 100, packed % 100, 0))
            }
            Self::OldDatetime => {
                let packed = bytes.le(8)?;
                let part = |unit: u64, size: u64| (packed / unit % size) as u32;
                let parts = [
                    part(10_000_000_000, 10_000),
                    part(100_000_000, 100),
                    part(1_000_000, 100),
                    part(10_000, 100),
                    part(100, 100),
                    part(1, 100),
                ];
                Value::Text(datetime(parts, 0, false))
            }
            Self::OldTimestamp => Value::Text(instant(bytes.le(4)? as u32, 0)),
            Self::Text { length_size, charset } => charset.text(bytes.sized(*length_size)?),
            Self::Blob { length_size, fill } => {
                let mut stored = bytes.sized(*length_size)?.to_vec();
                stored.resize(stored.len().max(*fill), 0);
                Value::Blob(stored)
            }
            Self::Enum { size, members } => match bytes.le(*size)? {
                0 => Value::Text(String::new()),
                n => Value::Text(member(members, n - 1)?.clone()),
            },
            Self::Set { size, members } => {
                let bits = bytes.le(*size)?;
                let chosen = (0..64).filter(|n| bits >> n & 1 == 1).map(|n| member(members, n).map(String::as_str));
                Value::Text(chosen.collect::<Result<Vec<_>>>()?.join(","))
            }
            Self::Json { length_size } => Value::Text(json_text(bytes.sized(*length_size)?)?),
            Self::Uuid { length_size } => Value::Text(uuid(filled(bytes.sized(*length_size)?)?)),
            Self::Inet4 { length_size } => {
                let address: [u8; 4] = filled(bytes.sized(*length_size)?)?;
                Value::Text(std::net::Ipv4Addr::from(address).to_string())
            }
            Self::Inet6 { length_size } => Value::Text(inet6(filled(bytes.sized(*length_size)?)?)),
        })
    }
}

fn members(column: &MapColumn, declared: &Declared, charset: Option<Charset>) -> Result<Arc<Vec<String>>, String> {
    let Some(told) = &column.members else { return Ok(Arc::new(declared.members.clone())) };
    let charset = charset.ok_or("its character set is not understood")?;
    let read = |bytes: &Vec<u8>| match charset.text(bytes) {
        Value::Text(text) => text,
        _ => String::from_utf8_lossy(bytes).into_owned(),
    };
    Ok(Arc::new(told.iter().map(read).collect()))
}

fn member(members: &[String], n: u64) -> Result<&String> {
    let member = usize::try_from(n).ok().and_then(|n| members.get(n));
    member.ok_or_else(|| Error::conflict(format!("a row has member {} of a list of {}", n + 1, members.len())))
}

/// Bytes with the zeros that were left out at their end.
fn filled<const SIZE: usize>(stored: &[u8]) -> Result<[u8; SIZE]> {
    let mut all = [0; SIZE];
    let start = all.get_mut(..stored.len()).ok_or_else(|| corrupt("a value is too long"))?;
    start.copy_from_slice(stored);
    Ok(all)
}

fn uuid(bytes: [u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
        }
    }
    text
}

/// An address as MariaDB writes it: it also shortens a single group, and shows addresses of version 4 in dots.
fn inet6(bytes: [u8; 16]) -> String {
    let groups: Vec<u16> = bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_be_bytes(*pair)).collect();
    // The longest run of zeros, the first of equals.
    let (mut start, mut length) = (8, 0);
    for i in 0..8 {
        let run = groups[i..].iter().take_while(|group| **group == 0).count();
        if run > length {
            (start, length) = (i, run);
        }
    }
    let hex = |range: &[u16]| range.iter().map(|group| format!("{group:x}")).collect::<Vec<_>>().join(":");
    let [.., a, b, c, d] = bytes;
    if start == 0 && (length == 6 || (length == 5 && groups[5] == 0xffff)) {
        let middle = if length == 5 { "ffff:" } else { "" };
        return format!("::{middle}{a}.{b}.{c}.{d}");
    }
    if length == 0 {
        return hex(&groups);
    }
    format!("{}::{}", hex(&groups[..start]), hex(&groups[start + length..]))
}

fn micros(fraction: u64, size: usize) -> u32 {
    fraction as u32 * [1_000_000, 10_000, 100, 1][size.min(3)]
}

fn fraction(bytes: &mut Bytes<'_>, digits: usize) -> Result<u32> {
    let size = digits.div_ceil(2);
    Ok(micros(bytes.be(size)?, size))
}

/// Bytes that hold so many digits of a group that is not whole.
const DIGIT_BYTES: [usize; 10] = [0, 1, 1, 2, 2, 3, 3, 4, 4, 4];

/// Groups of nine digits in four bytes each, a shorter group first and last; negative numbers are turned over.
pub(in crate::mysql) fn decimal(bytes: &mut Bytes<'_>, precision: usize, scale: usize) -> Result<String> {
    let whole = precision - scale;
    let size = |digits: usize| digits / 9 * 4 + DIGIT_BYTES[digits % 9];
    let mut packed = bytes.take(size(whole) + size(scale))?.to_vec();
    let first = packed.first_mut().ok_or_else(|| corrupt("a decimal has no digits"))?;
    let negative = *first & 0x80 == 0;
    *first ^= 0x80;
    if negative {
        packed.iter_mut().for_each(|byte| *byte = !*byte);
    }
    let mut packed = Bytes::new(&packed);
    let mut digits = String::with_capacity(precision + 2);
    let mut group = |count: usize, digits: &mut String| -> Result<()> {
        let number = packed.be(DIGIT_BYTES[count])?;
        digits.push_str(&format!("{number:0count$}"));
        Ok(())
    };
    if !whole.is_multiple_of(9) {
        group(whole % 9, &mut digits)?;
    }
    for _ in 0..whole / 9 {
        group(9, &mut digits)?;
    }
    let trimmed = digits.trim_start_matches('0');
    let mut text = if negative { "-".to_owned() } else { String::new() };
    text.push_str(if trimmed.is_empty() { "0" } else { trimmed });
    if scale > 0 {
        let mut digits = String::with_capacity(scale);
        for _ in 0..scale / 9 {
            group(9, &mut digits)?;
        }
        if !scale.is_multiple_of(9) {
            group(scale % 9, &mut digits)?;
        }
        text.push('.');
        text.push_str(&digits);
    }
    Ok(text)
}
