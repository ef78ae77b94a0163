//! JSON that shows whether it is as it was written.
//!
//! Small files of the daemon (`served.json`, events that wait for a webhook, copies
//! of records, what is known of a frozen shop) carry a check beside their fields, so
//! that a bit that a disk has turned is told from what somebody has said:
//!
//! ```text
//! {"version": 1, .., "check": "<the first half of the BLAKE3 of all other fields, as serde_json writes them>"}
//! ```
//!
//! Pure. No protection against who can write the file. Files without a check are of
//! former programs, or by hand, and are taken as they are; former programs pass over
//! the field.

use serde::Serialize;
use serde::de::{DeserializeOwned, Error as _};
use serde_json::Value;

const FIELD: &str = "check";

/// The content with its check.
///
/// # Errors
/// As serde_json's.
pub fn seal<T: Serialize>(content: &T) -> serde_json::Result<Value> {
    let mut value = serde_json::to_value(content)?;
    let check = check_of(&value);
    if let Value::Object(fields) = &mut value {
        fields.insert(FIELD.into(), check.into());
    }
    Ok(value)
}

/// Reads what [`seal`] made.
///
/// # Errors
/// When it is not of the form, or was changed since.
pub fn open<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    let mut value: Value = serde_json::from_slice(bytes)?;
    let check = value.as_object_mut().and_then(|fields| fields.remove(FIELD));
    if check.is_some_and(|check| check != check_of(&value)) {
        return Err(serde_json::Error::custom("it was damaged: its check is another one"));
    }
    serde_json::from_value(value)
}

fn check_of(value: &Value) -> String {
    let hash = blake3::hash(value.to_string().as_bytes()).to_hex();
    hash[..32].to_owned()
}

/// Tries each damage of a file that one bit or its end can take; `read` answers what
/// is read of it then. Nothing else than what was written may be.
#[cfg(test)]
pub(crate) fn damaged_is_refused_or_the_same<T: PartialEq + std::fmt::Debug>(
    path: &std::path::Path,
    read: impl Fn() -> Option<T>,
) {
    let whole = std::fs::read(path).unwrap();
    let before = read();
    let mut refused = 0;
    for at in 0..whole.len() {
        let mut turned = whole.clone();
        turned[at] ^= 1 << (at % 8);
        for damaged in [&turned[..], &whole[..at]] {
            std::fs::write(path, damaged).unwrap();
            match read() {
                None => refused += 1,
                found => assert_eq!(found, before, "damaged at {at}: {}", damaged.escape_ascii()),
            }
        }
    }
    assert!(refused > whole.len(), "{refused} of {}", 2 * whole.len());
    std::fs::write(path, whole).unwrap();
    assert_eq!(read(), before);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_was_sealed_is_read_and_what_was_changed_since_is_not() {
        let content = BTreeMap::from([("version", 1), ("a", 2)]);
        let sealed = seal(&content).unwrap();
        let read = |value: &Value| open::<BTreeMap<String, i32>>(value.to_string().as_bytes());
        assert_eq!(read(&sealed).unwrap()["a"], 2);
        let mut changed = sealed.clone();
        changed["a"] = 3.into();
        assert!(read(&changed).unwrap_err().to_string().contains("it was damaged"));
        let pretty = serde_json::to_vec_pretty(&sealed).unwrap();
        assert_eq!(open::<BTreeMap<String, i32>>(&pretty).unwrap().len(), 2, "however it is laid out");
    }

    #[test]
    fn what_a_former_program_wrote_is_read() {
        assert_eq!(open::<BTreeMap<String, i32>>(b"{\"a\": 2}").unwrap()["a"], 2);
    }
}
