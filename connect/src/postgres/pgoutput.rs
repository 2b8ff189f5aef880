//! The messages of `pgoutput`, protocol version 1, as the driver hands them on: it reads Begin, Commit and Message itself.
//!
//! The bytes come from outside. Every length is checked against what is there before anything is taken or allocated.
//!
//! # Source
//! PostgreSQL documentation, "Logical Replication Message Formats".

use bytes::Bytes;

use crate::{Error, Result};

/// A message about rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    Relation(Relation),
    Insert {
        relation: u32,
        new: Tuple,
    },
    Update {
        relation: u32,
        old: Option<Old>,
        new: Tuple,
    },
    Delete {
        relation: u32,
        old: Old,
    },
    Truncate {
        relations: Vec<u32>,
    },
    /// Origin, type: of no use here.
    Other,
}

/// A table as the stream describes it before the first of its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Relation {
    pub(super) id: u32,
    pub(super) schema: String,
    pub(super) name: String,
    /// `d`efault, `n`othing, `f`ull, `i`ndex.
    pub(super) identity: u8,
    pub(super) columns: Vec<RelationColumn>,
}

/// A column of a relation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RelationColumn {
    /// Part of the replica identity.
    pub(super) key: bool,
    pub(super) name: String,
    pub(super) type_oid: u32,
    pub(super) modifier: i32,
}

/// What is told of a row before its change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Old {
    /// The whole row; else the columns beside the replica identity are null whatever they were.
    pub(super) full: bool,
    pub(super) tuple: Tuple,
}

/// A row's cells.
pub(super) type Tuple = Vec<Cell>;

/// A value of a row, cut out of the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cell {
    Null,
    /// A value outside the row (TOAST) that the change left alone.
    Unchanged,
    Text(Bytes),
}

/// Reads a message.
///
/// # Errors
/// `Corrupt` for bytes that are none.
pub(super) fn decode(data: &Bytes) -> Result<Message> {
    let mut reader = Reader { data: data.clone(), at: 0 };
    let message = reader.message()?;
    match reader.at == data.len() || message == Message::Other {
        true => Ok(message),
        false => Err(Error::corrupt("bytes after a message of the stream")),
    }
}

struct Reader {
    data: Bytes,
    at: usize,
}

impl Reader {
    fn take(&mut self, count: usize) -> Result<&[u8]> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.data.len());
        let end = end.ok_or_else(|| Error::corrupt("a message of the stream is cut short"))?;
        let taken = &self.data[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<usize> {
        self.array().map(|bytes| usize::from(u16::from_be_bytes(bytes)))
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn text(&mut self) -> Result<String> {
        let rest = &self.data[self.at..];
        let length = rest.iter().position(|byte| *byte == 0);
        let length = length.ok_or_else(|| Error::corrupt("a name of the stream has no end"))?;
        let text = String::from_utf8(rest[..length].to_vec());
        self.at += length + 1;
        text.map_err(|_| Error::corrupt("a name of the stream is not UTF-8"))
    }

    fn message(&mut self) -> Result<Message> {
        Ok(match self.u8()? {
            b'R' => Message::Relation(self.relation()?),
            b'I' => {
                let relation = self.u32()?;
                self.expect(b'N')?;
                Message::Insert { relation, new: self.tuple()? }
            }
            b'U' => {
                let relation = self.u32()?;
                let mut tag = self.u8()?;
                let mut old = None;
                if tag != b'N' {
                    old = Some(self.old(tag)?);
                    tag = self.u8()?;
                }
                if tag != b'N' {
                    return Err(unknown("part of an update", tag));
                }
                Message::Update { relation, old, new: self.tuple()? }
            }
            b'D' => {
                let relation = self.u32()?;
                let tag = self.u8()?;
                Message::Delete { relation, old: self.old(tag)? }
            }
            b'T' => {
                let (count, _options) = (self.u32()?, self.u8()?);
                let left = self.data.len() - self.at;
                let count = usize::try_from(count).ok().filter(|count| count.checked_mul(4) == Some(left));
                let count = count.ok_or_else(|| Error::corrupt("a truncate of the stream is cut short"))?;
                Message::Truncate { relations: (0..count).map(|_| self.u32()).collect::<Result<_>>()? }
            }
            b'O' | b'Y' | b'M' | b'B' | b'C' => Message::Other,
            tag => return Err(unknown("message", tag)),
        })
    }

    fn expect(&mut self, tag: u8) -> Result<()> {
        match self.u8()? {
            found if found == tag => Ok(()),
            found => Err(unknown("part of a message", found)),
        }
    }

    fn relation(&mut self) -> Result<Relation> {
        let (id, schema, name, identity) = (self.u32()?, self.text()?, self.text()?, self.u8()?);
        let count = self.u16()?;
        let mut columns = Vec::new();
        for _ in 0..count {
            let key = self.u8()? & 1 == 1;
            let (name, type_oid) = (self.text()?, self.u32()?);
            columns.push(RelationColumn { key, name, type_oid, modifier: i32::from_be_bytes(self.array()?) });
        }
        // What every schema has is written as nothing.
        let schema = if schema.is_empty() { "pg_catalog".into() } else { schema };
        Ok(Relation { id, schema, name, identity, columns })
    }

    fn old(&mut self, tag: u8) -> Result<Old> {
        match tag {
            b'K' | b'O' => Ok(Old { full: tag == b'O', tuple: self.tuple()? }),
            _ => Err(unknown("old row", tag)),
        }
    }

    fn tuple(&mut self) -> Result<Tuple> {
        let count = self.u16()?;
        // A cell has at least its tag.
        if count > self.data.len() - self.at {
            return Err(Error::corrupt("a row of the stream is cut short"));
        }
        let mut cells = Vec::with_capacity(count);
        for _ in 0..count {
            cells.push(match self.u8()? {
                b'n' => Cell::Null,
                b'u' => Cell::Unchanged,
                b't' => {
                    let length = self.u32()? as usize;
                    self.take(length)?;
                    Cell::Text(self.data.slice(self.at - length..self.at))
                }
                tag => return Err(unknown("value", tag)),
            });
        }
        Ok(cells)
    }
}

fn unknown(what: &str, tag: u8) -> Error {
    Error::corrupt(format!("an unknown {what} {:?} in the stream", char::from(tag)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    fn tuple(cells: &[Option<&str>]) -> Vec<u8> {
        let mut bytes = (cells.len() as u16).to_be_bytes().to_vec();
        for cell in cells {
            match cell {
                None => bytes.push(b'n'),
                Some("~") => bytes.push(b'u'),
                Some(text) => {
                    bytes.push(b't');
                    bytes.extend((text.len() as u32).to_be_bytes());
                    bytes.extend(text.as_bytes());
                }
            }
        }
        bytes
    }

    fn corpus() -> Vec<Vec<u8>> {
        let id = 7_u32.to_be_bytes();
        let row = tuple(&[Some("1"), None, Some("~"), Some("text")]);
        let relation = [
            &b"R"[..],
            &id,
            b"public\0t\0d",
            &2_u16.to_be_bytes(),
            b"\x01id\0",
            &23_u32.to_be_bytes(),
            &(-1_i32).to_be_bytes(),
            b"\0v\0",
            &25_u32.to_be_bytes(),
            &(-1_i32).to_be_bytes(),
        ];
        vec![
            relation.concat(),
            [&b"I"[..], &id, b"N", &row].concat(),
            [&b"U"[..], &id, b"K", &row, b"N", &row].concat(),
            [&b"U"[..], &id, b"N", &row].concat(),
            [&b"D"[..], &id, b"O", &row].concat(),
            [&b"T"[..], &2_u32.to_be_bytes(), b"\0", &id, &id].concat(),
        ]
    }

    #[test]
    fn messages_are_read() {
        let read: Vec<_> = corpus().into_iter().map(|bytes| decode(&bytes.into()).unwrap()).collect();
        let Message::Relation(relation) = &read[0] else { panic!("{read:?}") };
        assert_eq!((relation.schema.as_str(), relation.name.as_str(), relation.identity), ("public", "t", b'd'));
        assert!(relation.columns[0].key && !relation.columns[1].key);
        let row = vec![
            Cell::Text(Bytes::from_static(b"1")),
            Cell::Null,
            Cell::Unchanged,
            Cell::Text(Bytes::from_static(b"text")),
        ];
        assert_eq!(read[1], Message::Insert { relation: 7, new: row.clone() });
        let old = |full| Old { full, tuple: row.clone() };
        assert_eq!(read[2], Message::Update { relation: 7, old: Some(old(false)), new: row.clone() });
        assert_eq!(read[3], Message::Update { relation: 7, old: None, new: row.clone() });
        assert_eq!(read[4], Message::Delete { relation: 7, old: old(true) });
        assert_eq!(read[5], Message::Truncate { relations: vec![7, 7] });
    }

    #[test]
    fn every_truncation_is_an_error() {
        for bytes in corpus() {
            for length in 0..bytes.len() {
                assert!(decode(&Bytes::copy_from_slice(&bytes[..length])).is_err(), "{bytes:?} {length}");
            }
        }
    }

    #[test]
    fn random_and_mangled_bytes_neither_panic_nor_allocate_what_they_claim() {
        let mut random = StdRng::seed_from_u64(4);
        let corpus = corpus();
        for round in 0..200_000 {
            let mut bytes = corpus[round % corpus.len()].clone();
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }
            let _ = decode(&bytes.into());
            let mut bytes = vec![0; random.random_range(0..64)];
            random.fill(&mut bytes[..]);
            if let Some(first) = bytes.first_mut() {
                *first = b"RIUDT"[round % 5];
            }
            let _ = decode(&bytes.into());
        }
        // The most that a count may claim.
        assert!(decode(&Bytes::from_static(b"T\xff\xff\xff\xff\0")).is_err());
        assert!(decode(&Bytes::from_static(b"I\0\0\0\x01N\0\x01t\xff\xff\xff\xff")).is_err());
    }
}
