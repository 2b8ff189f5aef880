//! A table's columns as the binlog tells them before rows.

use super::bytes::{Bytes, corrupt};
use crate::Result;

/// One column.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MapColumn {
    /// The type's number; where the type hides inside CHAR, the hidden one.
    pub kind: u8,
    /// What the type adds: lengths and digits, two bytes at most.
    pub meta: [u8; 2],
    /// Its name, under `binlog_row_metadata=FULL`.
    pub name: Option<String>,
    /// Whether it has no sign.
    pub unsigned: Option<bool>,
    /// Number of the collation of its text.
    pub collation: Option<u32>,
    /// Members of an ENUM or SET, in the column's character set.
    pub members: Option<Vec<Vec<u8>>>,
}

/// A table's number and columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableMap {
    pub table_id: u64,
    pub database: String,
    pub table: String,
    /// None where they are not understood.
    pub columns: Vec<MapColumn>,
    /// Why they are not.
    pub unreadable: Option<String>,
}

const BIT: u8 = 16;
const ENUM: u8 = 247;
const SET: u8 = 248;
const STRING: u8 = 254;

impl TableMap {
    /// Reads what comes after the event's header.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn read(data: &[u8]) -> Result<Self> {
        let mut bytes = Bytes::new(data);
        let table_id = bytes.le(6)?;
        bytes.take(2)?;
        let database = name(bytes.sized(1)?);
        bytes.u8()?;
        let table = name(bytes.sized(1)?);
        bytes.u8()?;
        let count = bytes.length()?;
        let kinds = bytes.take(count)?;
        let meta_length = bytes.length()?;
        let mut metas = Bytes::new(bytes.take(meta_length)?);
        let mut columns = Vec::with_capacity(kinds.len());
        for (n, kind) in kinds.iter().enumerate() {
            let Some(length) = meta_length_of(*kind) else {
                // What its type adds is not known, nor where the next column's begins.
                let unreadable = Some(format!("column {} has the unknown type {kind}", n + 1));
                return Ok(Self { table_id, database, table, columns: Vec::new(), unreadable });
            };
            columns.push(column(*kind, length, &mut metas)?);
        }
        bytes.take(count.div_ceil(8))?;
        let mut map = Self { table_id, database, table, columns, unreadable: None };
        while !bytes.is_empty() {
            let field = bytes.u8()?;
            let length = bytes.length()?;
            map.field(field, Bytes::new(bytes.take(length)?))?;
        }
        Ok(map)
    }

    /// One optional field.
    fn field(&mut self, field: u8, mut bytes: Bytes<'_>) -> Result<()> {
        let every = |is: fn(&MapColumn) -> bool, columns: &[MapColumn]| -> Vec<usize> {
            (0..columns.len()).filter(|i| is(&columns[*i])).collect()
        };
        match field {
            1 => {
                let flags = bytes.rest();
                for (n, i) in every(MapColumn::is_number, &self.columns).into_iter().enumerate() {
                    // The first column's flag is the topmost bit.
                    let flag = flags.get(n / 8).ok_or_else(|| corrupt("signs are missing"))?;
                    self.columns[i].unsigned = Some(flag >> (7 - n % 8) & 1 == 1);
                }
            }
            2 | 10 => {
                let which = every(if field == 2 { MapColumn::is_text } else { MapColumn::is_list }, &self.columns);
                let default = collation(&mut bytes)?;
                for i in &which {
                    self.columns[*i].collation = Some(default);
                }
                while !bytes.is_empty() {
                    let at = bytes.length()?;
                    let i = which.get(at).ok_or_else(|| corrupt("a collation is of no column"))?;
                    self.columns[*i].collation = Some(collation(&mut bytes)?);
                }
            }
            3 | 11 => {
                for i in every(if field == 3 { MapColumn::is_text } else { MapColumn::is_list }, &self.columns) {
                    self.columns[i].collation = Some(collation(&mut bytes)?);
                }
            }
            4 => {
                for column in &mut self.columns {
                    let length = bytes.length()?;
                    column.name = Some(name(bytes.take(length)?));
                }
            }
            5 | 6 => {
                let kind = if field == 5 { SET } else { ENUM };
                for column in self.columns.iter_mut().filter(|column| column.kind == kind) {
                    let count = bytes.length()?;
                    let mut members = Vec::new();
                    for _ in 0..count {
                        let length = bytes.length()?;
                        members.push(bytes.take(length)?.to_vec());
                    }
                    column.members = Some(members);
                }
            }
            // Types of geometries, the key, visibility.
            _ => {}
        }
        Ok(())
    }
}

impl MapColumn {
    /// Whether a flag tells its sign. YEAR is among them, though it has none.
    fn is_number(&self) -> bool {
        matches!(self.kind, 1..=5 | 8 | 9 | 13 | 246)
    }

    /// Whether a collation tells its text. Vectors are among them, as MySQL keeps them like blobs.
    fn is_text(&self) -> bool {
        matches!(self.kind, 242 | 15 | 253 | 254 | 252 | 140 | 141 | 249..=251)
    }

    fn is_list(&self) -> bool {
        matches!(self.kind, ENUM | SET)
    }

    /// The two bytes of the meta data as one number.
    pub fn meta_number(&self) -> usize {
        usize::from(u16::from_le_bytes(self.meta))
    }
}

fn collation(bytes: &mut Bytes<'_>) -> Result<u32> {
    u32::try_from(bytes.length()?).map_err(|_| corrupt("a collation is none"))
}

fn name(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// How many bytes a type adds; `None` where it is not known.
fn meta_length_of(kind: u8) -> Option<usize> {
    Some(match kind {
        // Integers, dates, moments of the old kind, the year, NULL.
        1..=3 | 6..=14 => 0,
        // Float, double, moments with digits, blobs, vectors, JSON, geometries, compressed blobs.
        4 | 5 | 17..=19 | 140 | 242 | 245 | 249..=252 | 255 => 1,
        // VARCHAR, BIT, decimal, lists, CHAR, compressed VARCHAR.
        15 | BIT | 141 | 246 | ENUM | SET | 253 | STRING => 2,
        _ => return None,
    })
}

fn column(kind: u8, length: usize, metas: &mut Bytes<'_>) -> Result<MapColumn> {
    let mut meta = [0; 2];
    meta[..length].copy_from_slice(metas.take(length)?);
    let mut kind = kind;
    if kind == STRING {
        // The first byte is the type, with two bits of a length beyond 255 turned over.
        let [first, second] = meta;
        let long = usize::from((first & 0x30) ^ 0x30) << 4;
        kind = first | 0x30;
        meta = ((long | usize::from(second)) as u16).to_le_bytes();
        if !matches!(kind, ENUM | SET | STRING) {
            return Err(corrupt("a CHAR is none"));
        }
    }
    Ok(MapColumn { kind, meta, ..MapColumn::default() })
}
