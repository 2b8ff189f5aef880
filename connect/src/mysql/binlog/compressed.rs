//! What MariaDB compresses in events (`log_bin_compress`): a byte, a length, a zlib stream.

use std::io::Read;

use flate2::read::ZlibDecoder;

use super::bytes::{Bytes, corrupt};
use crate::Result;

/// No event is longer when it is inflated.
const MAX_BYTES: u64 = 1 << 30;
/// Memory that is taken on a length's word alone.
const TRUSTED_BYTES: usize = 1 << 20;

/// Inflates the rest of an event.
///
/// # Errors
/// `Corrupt` where it is not compressed by a known method, or not as long as it says.
pub fn inflate(packed: &[u8]) -> Result<Vec<u8>> {
    let mut packed = Bytes::new(packed);
    let head = packed.u8()?;
    // The topmost bit is always set, three more tell the method, the lowest three the length's own length.
    if head & 0xf0 != 0x80 {
        return Err(corrupt("it is compressed by an unknown method"));
    }
    let length = packed.be(usize::from(head & 7).min(8))?;
    if length > MAX_BYTES {
        return Err(corrupt("it is too long"));
    }
    let mut plain = Vec::with_capacity(TRUSTED_BYTES.min(usize::try_from(length).unwrap_or(0)));
    let inflated = ZlibDecoder::new(packed.rest()).take(length + 1).read_to_end(&mut plain);
    match inflated {
        Ok(count) if count as u64 == length => Ok(plain),
        Ok(_) => Err(corrupt("what was compressed is not as long as it says")),
        Err(e) => Err(corrupt(&format!("what was compressed cannot be inflated: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::ZlibEncoder};

    use super::*;

    fn packed(length: u16, text: &[u8]) -> Vec<u8> {
        let mut zlib = ZlibEncoder::new(vec![0x82, (length >> 8) as u8, length as u8], Compression::default());
        zlib.write_all(text).unwrap();
        zlib.finish().unwrap()
    }

    #[test]
    fn only_what_is_as_long_as_it_says_is_inflated() {
        let text = b"tide ".repeat(100);
        let good = packed(500, &text);
        assert_eq!(inflate(&good).unwrap(), text);
        for end in 0..good.len() {
            assert!(inflate(&good[..end]).is_err(), "{end}");
        }
        assert!(inflate(&packed(499, &text)).is_err());
        assert!(inflate(&packed(501, &text)).is_err());
        assert!(inflate(&[0x90, 0]).is_err());
        assert!(inflate(&[0x84, 0xff, 0xff, 0xff, 0xff, 0]).is_err());
    }
}
