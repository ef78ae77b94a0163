//! Sizes as people write them.

/// Bytes of a text such as `768M` or `2G`; units are powers of 1024.
///
/// # Errors
/// What is wrong with it, in one sentence.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?}: a size such as 768M or 2G");
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return Err(wrong()),
    };
    digits.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).filter(|n| *n > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit_or_none() {
        assert_eq!(bytes("768M"), Ok(768 << 20));
        assert_eq!(bytes("4096"), Ok(4096));
        for wrong in ["768MB", "0", "", "G", "-1G", "99999999999999999999G"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
