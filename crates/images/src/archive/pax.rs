//! PAX extended headers: records of `length key=value\n`.

use super::sparse::{Segment, SparseRecords};

/// What the extended header before an entry says about it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<i64>,
    pub(super) attributes: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: SparseRecords,
}

const ATTRIBUTE_PREFIX: &[u8] = b"SCHILY.xattr.";

/// Decodes the body of an extended header; the error is the field that is wrong.
pub(super) fn decode(mut body: &[u8]) -> Result<Extended, &'static str> {
    let mut extended = Extended::default();
    while !body.is_empty() {
        let blank = body.iter().take(20).position(|byte| *byte == b' ').ok_or("extended header")?;
        let length = usize::try_from(decimal(&body[..blank]).ok_or("extended header")?).unwrap_or(usize::MAX);
        if length <= blank + 2 || length > body.len() || body[length - 1] != b'\n' {
            return Err("extended header");
        }
        let record = &body[blank + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or("extended header")?;
        extended.record(&record[..equals], &record[equals + 1..])?;
        body = &body[length..];
    }
    Ok(extended)
}

impl Extended {
    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        match key {
            b"path" => self.path = name(value, "path")?,
            b"linkpath" => self.link = name(value, "link target")?,
            b"size" => self.size = Some(decimal(value).ok_or("size")?),
            b"uid" => self.uid = Some(decimal(value).ok_or("owner")?),
            b"gid" => self.gid = Some(decimal(value).ok_or("group")?),
            b"mtime" => self.mtime = Some(seconds(value).ok_or("modification time")?),
            b"GNU.sparse.major" => self.sparse.major = decimal(value),
            b"GNU.sparse.minor" => self.sparse.minor = decimal(value),
            b"GNU.sparse.name" => self.sparse.name = name(value, "path")?,
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => {
                self.sparse.real_size = Some(decimal(value).ok_or("sparse size")?);
            }
            b"GNU.sparse.map" => self.sparse.map = Some(map(value).ok_or("sparse map")?),
            b"GNU.sparse.offset" => self.sparse.offset = Some(decimal(value).ok_or("sparse map")?),
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.offset.take().ok_or("sparse map")?;
                let length = decimal(value).ok_or("sparse map")?;
                self.sparse.map.get_or_insert_default().push(Segment { offset, length });
            }
            _ => {
                if let Some(attribute) = key.strip_prefix(ATTRIBUTE_PREFIX) {
                    if attribute.is_empty() || attribute.contains(&0) {
                        return Err("extended attribute name");
                    }
                    self.attributes.push((attribute.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }

    /// Whether it would name or size every later entry, as only a forged global header does.
    pub(super) fn misplaced_in_global(&self) -> bool {
        self.path.is_some() || self.link.is_some() || self.size.is_some() || self.sparse != SparseRecords::default()
    }
}

/// A path: no NUL, or what the kernel sees would be another name than the one checked. Empty means "not set".
fn name(value: &[u8], field: &'static str) -> Result<Option<Vec<u8>>, &'static str> {
    if value.contains(&0) {
        return Err(field);
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn map(value: &[u8]) -> Option<Vec<Segment>> {
    let numbers = value.split(|byte| *byte == b',').map(decimal).collect::<Option<Vec<u64>>>()?;
    let pairs = numbers.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    Some(pairs.map(|pair| Segment { offset: pair[0], length: pair[1] }).collect())
}

/// Whole seconds of a decimal fraction; a fraction of a second is dropped.
fn seconds(value: &[u8]) -> Option<i64> {
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let whole = digits.split(|byte| *byte == b'.').next()?;
    let whole = i64::try_from(decimal(whole)?).ok()?;
    Some(if negative { -whole } else { whole })
}

pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_decoded() {
        let body = b"12 path=a/b\n25 mtime=1700000000.1234\n32 SCHILY.xattr.user.note=a\0b\nc\n";
        let extended = decode(body).expect("well-formed");
        assert_eq!(extended.path.as_deref(), Some(b"a/b".as_slice()));
        assert_eq!(extended.mtime, Some(1_700_000_000));
        assert_eq!(extended.attributes, [(b"user.note".to_vec(), b"a\0b\nc".to_vec())]);
    }

    #[test]
    fn malformed_records_are_refused() {
        for body in [
            b"5 a=b\n".as_slice(),
            b"99 path=x\n",
            b"x path=x\n",
            b"11 path=a\0b\n",
            b"10 nokey__\n",
            b"2 \n",
            b"18446744073709551616 a=b\n",
        ] {
            assert!(decode(body).is_err(), "{}", body.escape_ascii());
        }
    }
}
