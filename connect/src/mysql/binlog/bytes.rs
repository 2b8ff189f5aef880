//! A reader of bytes from the network: it never reads past the end, and never allocates for a length it was told.

use crate::{Error, ErrorKind, Result};

/// What is left to read.
#[derive(Debug, Clone, Copy)]
pub struct Bytes<'a> {
    rest: &'a [u8],
}

/// An event that cannot be read.
pub fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("a binlog event is damaged: {what}"))
}

impl<'a> Bytes<'a> {
    pub fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return Err(corrupt("it ends too early"));
        };
        self.rest = rest;
        Ok(taken)
    }

    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    /// An unsigned integer of at most 8 bytes, the least first.
    pub fn le(&mut self, count: usize) -> Result<u64> {
        Ok(self.take(count)?.iter().rev().fold(0, |sum, byte| (sum << 8) | u64::from(*byte)))
    }

    /// An unsigned integer of at most 8 bytes, the greatest first.
    pub fn be(&mut self, count: usize) -> Result<u64> {
        Ok(self.take(count)?.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte)))
    }

    /// A length as the protocol packs it.
    pub fn length(&mut self) -> Result<usize> {
        let size = match self.u8()? {
            short @ 0..=250 => return Ok(usize::from(short)),
            0xfc => 2,
            0xfd => 3,
            0xfe => 8,
            _ => return Err(corrupt("a length is none")),
        };
        usize::try_from(self.le(size)?).map_err(|_| corrupt("a length is beyond memory"))
    }

    /// A length of `size` bytes, and as many bytes.
    pub fn sized(&mut self, size: usize) -> Result<&'a [u8]> {
        let count = usize::try_from(self.le(size)?).map_err(|_| corrupt("a length is beyond memory"))?;
        self.take(count)
    }
}

/// The n-th bit, counted from the least of the first byte.
pub fn bit(bytes: &[u8], n: usize) -> bool {
    bytes.get(n / 8).is_some_and(|byte| byte >> (n % 8) & 1 == 1)
}
