//! Transactions that MySQL compresses (`binlog_transaction_compression`): the driver unpacks them.

use super::bytes::{Bytes, corrupt};
use crate::{Error, Result};

/// No transaction is longer when it is unpacked.
const MAX_BYTES: u64 = 1 << 30;
/// The fields before the compressed bytes.
const END: usize = 0;
const PACKED_SIZE: usize = 1;
const UNPACKED_SIZE: usize = 3;

/// How many bytes of events a compressed transaction has.
///
/// # Errors
/// `Corrupt`; `Unsupported` for one that is too long.
pub fn size(bytes: &mut Bytes<'_>) -> Result<u64> {
    let (mut packed, mut unpacked) = (None, None);
    loop {
        let field = bytes.length()?;
        if field == END {
            break;
        }
        let length = bytes.length()?;
        let mut value = Bytes::new(bytes.take(length)?);
        match field {
            PACKED_SIZE => packed = Some(value.length()? as u64),
            UNPACKED_SIZE => unpacked = Some(value.length()? as u64),
            _ => {}
        }
    }
    let packed = packed.ok_or_else(|| corrupt("a compressed transaction has no length"))?;
    let size = unpacked.unwrap_or(packed);
    if size > MAX_BYTES {
        return Err(Error::unsupported(format!(
            "the binlog has a compressed transaction of {size} bytes, and {MAX_BYTES} is the most: write such ones with SET \
             SESSION binlog_transaction_compression = OFF"
        )));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_length_is_read_and_bounded() {
        let event = [2, 1, 0, 3, 3, 0xfc, 0x2c, 1, 1, 1, 2, 0, 9, 9];
        assert_eq!(size(&mut Bytes::new(&event)).unwrap(), 300);
        for end in 0..12 {
            assert!(size(&mut Bytes::new(&event[..end])).is_err(), "{end}");
        }
        let huge = [3, 9, 0xfe, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 0];
        assert_eq!(size(&mut Bytes::new(&huge)).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
