//! Whether somebody meant a name that there is. Pure.

/// Two slips of the keyboard make another word of one with fewer letters.
const DISTANCE_MAX: usize = 2;

/// `; did you mean X?`, or nothing: for the end of an error that refuses `name`.
#[must_use]
pub fn did_you_mean(name: &str, known: &[impl AsRef<str>]) -> String {
    let near = known.iter().map(AsRef::as_ref).map(|one| (strsim::damerau_levenshtein(name, one), one));
    let nearest = near.filter(|(distance, one)| *distance <= DISTANCE_MAX && *distance < one.len()).min();
    nearest.map(|(_, one)| format!("; did you mean {one}?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_seen_through_and_another_word_is_not() {
        let known = ["prestashop", "wordpress"];
        assert_eq!(did_you_mean("prestahop", &known), "; did you mean prestashop?");
        assert_eq!(did_you_mean("wrodpress", &known), "; did you mean wordpress?");
        assert_eq!(did_you_mean("magento", &known), "");
        assert_eq!(did_you_mean("ab", &["x"]), "", "every short word is near");
    }
}
