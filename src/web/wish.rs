//! What a visitor asks for, in a link or a form: strictly read. Pure.
//!
//! ```text
//! golden   which golden; without it the first one served
//! module   in whose page the back office opens, where the golden can do that
//! go       where the click ends: page (the visitor's own), shop, admin
//! ```

use std::sync::Arc;

use serde::Deserialize;

use crate::id::GoldenName;
use crate::provision::GoldenRuntime;

/// The longest name of a module: those of PrestaShop's and WordPress's directories
/// are shorter.
const MODULE_MAX: usize = 64;

/// The parameters as they come.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    golden: String,
    #[serde(default)]
    module: String,
    #[serde(default)]
    go: String,
}

/// Where a click ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Go {
    /// The page with everything about the instance.
    Page,
    /// The shop's front page.
    Shop,
    /// The back office, signed in.
    Admin,
}

impl Go {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Page => "page",
            Self::Shop => "shop",
            Self::Admin => "admin",
        }
    }
}

/// A name that is safe in a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module(String);

impl Module {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let valid = (1..=MODULE_MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        valid.then(|| Self(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A checked wish.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) golden: Arc<GoldenRuntime>,
    pub(super) module: Option<Module>,
    pub(super) go: Go,
}

/// What is wrong with one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrong {
    /// No such golden is served.
    Golden,
    /// It is no module's name, or this golden opens none.
    Module,
    /// It is nowhere to go.
    Go,
}

impl Asked {
    /// The wish, or the first thing that is wrong with it.
    pub(super) fn check(&self, goldens: &[Arc<GoldenRuntime>]) -> Result<Wish, Wrong> {
        let golden = match self.golden.as_str() {
            "" => goldens.first(),
            name => goldens.iter().find(|golden| golden.name.as_str() == name),
        };
        let golden = Arc::clone(golden.ok_or(Wrong::Golden)?);
        let module = match self.module.as_str() {
            "" => None,
            name if golden.about.opens_modules => Some(Module::parse(name).ok_or(Wrong::Module)?),
            _ => return Err(Wrong::Module),
        };
        let go = match self.go.as_str() {
            // Who names a module wants to see it.
            "" if module.is_some() => Go::Admin,
            "" | "page" => Go::Page,
            "shop" => Go::Shop,
            "admin" => Go::Admin,
            _ => return Err(Wrong::Go),
        };
        Ok(Wish { golden, module, go })
    }
}

impl Wish {
    /// The name of its golden.
    pub(super) fn name(&self) -> &GoldenName {
        &self.golden.name
    }

    /// The same wish as a link's parameters.
    pub(super) fn query(&self) -> String {
        let module = self.module.as_ref().map_or_else(String::new, |it| format!("&module={}", it.as_str()));
        format!("golden={}{module}&go={}", self.golden.name, self.go.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::EngineKind;
    use crate::provision::GoldenAbout;
    use crate::testing::{Script, runtime};

    fn goldens() -> Vec<Arc<GoldenRuntime>> {
        let script = Script::quiet(EngineKind::Criu);
        let plain = GoldenRuntime { about: GoldenAbout::default(), ..runtime("plain", &script, None) };
        vec![Arc::new(runtime("shop", &script, None)), Arc::new(plain)]
    }

    fn check(golden: &str, module: &str, go: &str) -> Result<String, Wrong> {
        let asked = Asked { golden: golden.into(), module: module.into(), go: go.into() };
        asked.check(&goldens()).map(|wish| wish.query())
    }

    #[test]
    fn a_wish_is_read_and_said_again() {
        for (golden, module, go, expected) in [
            ("", "", "", "golden=shop&go=page"),
            ("plain", "", "shop", "golden=plain&go=shop"),
            ("shop", "ps_banner", "", "golden=shop&module=ps_banner&go=admin"),
            ("shop", "my-module", "page", "golden=shop&module=my-module&go=page"),
        ] {
            assert_eq!(check(golden, module, go).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn what_is_not_a_wish_is_refused() {
        assert_eq!(check("magento", "", ""), Err(Wrong::Golden));
        assert_eq!(check("plain", "ps_banner", ""), Err(Wrong::Module), "it opens none");
        assert_eq!(check("shop", "", "//evil.example"), Err(Wrong::Go));
        for module in ["../x", "a b", "a&b=c", "é", "a%20", &"a".repeat(65), "a.b", "<script>"] {
            assert_eq!(check("shop", module, ""), Err(Wrong::Module), "{module}");
        }
    }
}
