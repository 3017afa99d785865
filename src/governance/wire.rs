//! OpenSSH's wire form (RFC 4251 §5): length-prefixed strings and nothing after the last.
//!
//! A length is held against what is there before anything is taken, so no input makes it allocate.

/// What is left of a wire text.
pub(super) struct Wire<'a>(pub(super) &'a [u8]);

impl<'a> Wire<'a> {
    pub(super) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.bytes(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    pub(super) fn string(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        self.bytes(length)
    }

    /// A positive `mpint` of at most 32 bytes, in its one minimal form, padded to 32 bytes.
    pub(super) fn scalar(&mut self) -> Option<[u8; 32]> {
        let text = self.string()?;
        let digits = match text {
            [] => return None,
            [0, high, ..] if high & 0x80 != 0 => &text[1..],
            [first, ..] if *first == 0 || first & 0x80 != 0 => return None,
            _ => text,
        };
        let mut scalar = [0; 32];
        scalar.get_mut(32usize.checked_sub(digits.len())?..)?.copy_from_slice(digits);
        Some(scalar)
    }

    pub(super) fn end(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// Appends a wire string.
pub(super) fn write_string(text: &[u8], out: &mut Vec<u8>) {
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_never_reach_beyond_the_text() {
        for text in [&[][..], &[0, 0, 0], &[0, 0, 0, 1], &[0xFF; 4], &[0xFF, 0xFF, 0xFF, 0xFF, 1]] {
            assert_eq!(Wire(text).string(), None, "{text:?}");
        }
        let mut wire = Wire(&[0, 0, 0, 2, 7, 8, 9]);
        assert_eq!(wire.string(), Some(&[7, 8][..]));
        assert_eq!(wire.end(), None, "a byte is left");
    }

    #[test]
    fn a_scalar_has_one_spelling() {
        let read = |digits: &[u8]| {
            let mut text = Vec::new();
            write_string(digits, &mut text);
            Wire(&text).scalar()
        };
        let mut one = [0; 32];
        one[31] = 1;
        assert_eq!(read(&[1]), Some(one));
        let mut high = vec![0];
        high.extend([0xFF; 32]);
        assert_eq!(read(&high), Some([0xFF; 32]));
        for bad in [&[][..], &[0], &[0, 1], &[0x80], &[0xFF; 32], &[1; 33]] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }
}
