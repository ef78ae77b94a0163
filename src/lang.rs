//! The languages that pages speak: which one a browser asks for, tables of
//! texts, and how times are said. Pure; used by all who write pages.
//!
//! A table is made by [`texts!`], so no language can lack a text; a text that no
//! page shows is a warning of the compiler's.

use http::HeaderMap;
use http::header::ACCEPT_LANGUAGE;
use jiff::SignedDuration;

/// The language of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lang {
    /// English, also for those who ask for neither.
    En,
    /// French.
    Fr,
}

impl Lang {
    /// Those there are.
    pub const ALL: [Self; 2] = [Self::En, Self::Fr];

    /// For `lang` and Content-Language.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::Fr => "fr",
        }
    }

    /// The one that a browser would rather have (RFC 9110, 12.5.4): of two it
    /// likes as much, the one it names first.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let named = headers.get_all(ACCEPT_LANGUAGE).iter().filter_map(|value| value.to_str().ok());
        let wishes = named.flat_map(|value| value.split(',')).filter_map(wish);
        let best = wishes.fold(None, |best: Option<(Self, f32)>, (lang, liked)| match best {
            Some((_, most)) if most >= liked => best,
            _ => Some((lang, liked)),
        });
        best.map_or(Self::En, |(lang, _)| lang)
    }

    /// A time in words, as exact as somebody wants it: `1 h 20 min`, `45 s`.
    #[must_use]
    pub fn duration(self, time: SignedDuration) -> String {
        let seconds = time.as_secs().max(0);
        let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
        let day = match self {
            Self::En => "d",
            Self::Fr => "j",
        };
        let parts = match (days, hours, minutes) {
            (0, 0, 0) => return format!("{seconds}\u{a0}s"),
            (0, 0, _) => [Some((minutes, "min")), None],
            (0, _, 0) => [Some((hours, "h")), None],
            (0, ..) => [Some((hours, "h")), Some((minutes, "min"))],
            (_, 0, _) => [Some((days, day)), None],
            _ => [Some((days, day)), Some((hours, "h"))],
        };
        let parts: Vec<String> = parts.iter().flatten().map(|(n, unit)| format!("{n}\u{a0}{unit}")).collect();
        parts.join(" ")
    }

    /// Milliseconds, with a decimal only where one is of interest.
    #[must_use]
    pub fn ms(self, ms: f64) -> String {
        if ms >= 10.0 {
            return format!("{ms:.0}\u{a0}ms");
        }
        let text = format!("{ms:.1}\u{a0}ms");
        match self {
            Self::En => text,
            Self::Fr => text.replace('.', ","),
        }
    }
}

/// One entry of Accept-Language that is a language of ours, and how much it is
/// liked; none when it is not wanted at all.
fn wish(entry: &str) -> Option<(Lang, f32)> {
    let mut parts = entry.split(';').map(str::trim);
    let tag = parts.next()?.split('-').next()?;
    let lang = match tag {
        tag if tag.eq_ignore_ascii_case("fr") => Lang::Fr,
        tag if tag.eq_ignore_ascii_case("en") || tag == "*" => Lang::En,
        _ => return None,
    };
    let liked = parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse().ok());
    liked.filter(|liked| *liked > 0.0).map(|liked| (lang, liked))
}

/// The text with each `{}` replaced, in order.
#[must_use]
pub fn fill(text: &str, values: &[&str]) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut values = values.iter();
    for (n, part) in text.split("{}").enumerate() {
        if n > 0 {
            out.push_str(values.next().copied().unwrap_or_default());
        }
        out.push_str(part);
    }
    out
}

/// Makes a table of texts: `key: "English", "French";`, read as `Table::of(lang).key`.
macro_rules! texts {
    ($(#[$doc:meta])* $name:ident { $($key:ident: $en:literal, $fr:literal;)+ }) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) struct $name { $(pub(crate) $key: &'static str,)+ }

        impl $name {
            /// The texts in that language.
            pub(crate) const fn of(lang: $crate::lang::Lang) -> &'static Self {
                const EN: $name = $name { $($key: $en,)+ };
                const FR: $name = $name { $($key: $fr,)+ };
                match lang {
                    $crate::lang::Lang::En => &EN,
                    $crate::lang::Lang::Fr => &FR,
                }
            }

            /// Every text: key, English, French.
            #[cfg(test)]
            pub(crate) const ALL: &'static [(&'static str, &'static str, &'static str)] =
                &[$((stringify!($key), $en, $fr),)+];
        }
    };
}
pub(crate) use texts;

/// Fails when a text of a table is empty, the same in both languages without
/// being one of `alike`, takes other values, or is not set as French is.
#[cfg(test)]
#[track_caller]
pub(crate) fn assert_translated(table: &[(&str, &str, &str)], alike: &[&str]) {
    for (key, en, fr) in table {
        assert!(!en.trim().is_empty() && !fr.trim().is_empty(), "{key} is empty");
        assert_eq!(en.matches("{}").count(), fr.matches("{}").count(), "{key} takes other values");
        assert_eq!(en == fr, alike.contains(key), "{key}: {en:?} in both languages");
        assert!(is_set_as_french(fr), "{key}: {fr:?} lacks a space that no line breaks at (\\u{{a0}})");
    }
    for key in alike {
        assert!(table.iter().any(|(known, ..)| known == key), "{key} is no text");
    }
}

/// Whether colons, semicolons, exclamation and question marks and the insides of
/// guillemets have a space that no line breaks at.
#[cfg(test)]
fn is_set_as_french(text: &str) -> bool {
    let is_firm = |c: Option<char>| matches!(c, Some('\u{a0}' | '\u{202f}'));
    text.char_indices().all(|(at, c)| {
        let (before, after) = (text[..at].chars().next_back(), text[at + c.len_utf8()..].chars().next());
        match c {
            // Of an address or a time of day it is a part.
            ':' if after.is_some_and(|next| !next.is_whitespace()) => true,
            ':' | ';' | '!' | '?' | '»' => is_firm(before),
            '«' => is_firm(after),
            _ => true,
        }
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn asked(value: &'static str) -> Lang {
        Lang::of(&HeaderMap::from_iter([(ACCEPT_LANGUAGE, HeaderValue::from_static(value))]))
    }

    #[test]
    fn a_browser_gets_the_language_it_likes_best() {
        for (value, expected) in [
            ("fr", Lang::Fr),
            ("fr-CA,fr;q=0.8,en;q=0.5", Lang::Fr),
            ("en-GB,fr;q=0.9", Lang::En),
            ("de,fr;q=0.7,en;q=0.3", Lang::Fr),
            ("de", Lang::En),
            ("de,*;q=0.5,fr;q=0.1", Lang::En),
            ("fr;q=0, en;q=0.1", Lang::En),
            ("en;q=0.5, fr;q=0.5", Lang::En),
            ("fr;q=x", Lang::En),
            ("frisian", Lang::En),
            ("", Lang::En),
        ] {
            assert_eq!(asked(value), expected, "{value}");
        }
        assert_eq!(Lang::of(&HeaderMap::new()), Lang::En);
    }

    #[test]
    fn times_are_said_in_two_parts_at_most() {
        let said =
            |seconds, lang: Lang| lang.duration(SignedDuration::from_secs(seconds)).replace('\u{a0}', " ");
        for (seconds, expected) in [
            (-3, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (3599, "59 min"),
            (3600, "1 h"),
            (4800, "1 h 20 min"),
            (86_400, "1 d"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(said(seconds, Lang::En), expected);
        }
        assert_eq!(said(90_000, Lang::Fr), "1 j 1 h");
        assert_eq!((Lang::En.ms(4.26).as_str(), Lang::Fr.ms(4.26).as_str()), ("4.3\u{a0}ms", "4,3\u{a0}ms"));
        assert_eq!(Lang::En.ms(143.7), "144\u{a0}ms");
    }

    #[test]
    fn a_french_text_that_may_break_before_its_last_sign_is_found() {
        for good in ["Prête\u{a0}: {}", "Quoi\u{202f}?", "Un «\u{a0}mot\u{a0}»", "à 10:30", "http://a.b/"]
        {
            assert!(is_set_as_french(good), "{good}");
        }
        for bad in ["Prête : {}", "Quoi?", "Un « mot\u{a0}»", "Un «\u{a0}mot »", "voilà ; ici", "Non !"]
        {
            assert!(!is_set_as_french(bad), "{bad}");
        }
    }

    #[test]
    fn values_take_their_places_in_order() {
        assert_eq!(fill("{} of {}", &["1", "{}"]), "1 of {}");
        assert_eq!(fill("none", &["1"]), "none");
    }
}
