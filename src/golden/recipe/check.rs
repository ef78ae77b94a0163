//! What a recipe has to keep to beyond its form. Pure; called for every recipe
//! that is read, from a folder or from a manifest.

use super::Recipe;
use crate::config::units;

/// What a shop may be given of the processor; the kernel's least quota is a
/// hundredth of a core.
const CPU_MAX: std::ops::RangeInclusive<f64> = 0.01..=4096.0;

/// A day: whoever waits longer for a boot waits for nothing.
const TIMEOUT_MAX: u64 = 86_400;

impl Recipe {
    /// What the form alone does not say; also asked of a recipe in a manifest.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.network.check()?;
        for warm in &self.warm {
            if warm.path.is_some() == warm.exec.is_some() {
                return Err("each [[warm]] has either a path or an exec".into());
            }
        }
        for file in &self.personalize.files {
            if file.content.is_some() != file.replace.is_empty() {
                return Err(format!("[[personalize.files]] {}: either content or replace", file.path));
            }
        }
        if !self.personalize.sql.is_empty()
            && (self.run.database_socket.is_none() || self.run.database.is_none())
        {
            return Err("[[personalize.sql]] needs run.database_socket and run.database".into());
        }
        if let Some(path) = &self.admin.one_click {
            if !path.starts_with('/') || !path.contains("{token}") {
                return Err(format!("admin.one_click = {path:?} is not a path with {{token}} in it"));
            }
            if !self.personalize.mentions("login_key") {
                return Err(
                    "admin.one_click needs {login_key} in a file or statement of [personalize]".into()
                );
            }
        }
        if self.admin.one_click_module && !self.admin.one_click.as_ref().is_some_and(|it| it.contains('?')) {
            return Err("admin.one_click_module needs an admin.one_click with a ? in it".into());
        }
        let language = self.about.language.as_deref().unwrap_or("en");
        if !(2..=8).contains(&language.len())
            || !language.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        {
            return Err(format!("about.language = {language:?} is not a language such as en or pt-BR"));
        }
        let paths =
            self.personalize.files.iter().map(|file| &file.path).chain(&self.personalize.remove.paths);
        let run = &self.run;
        let paths =
            paths.chain(&run.database_socket).chain(&run.database_program).chain(&run.logs).chain(&run.names);
        for path in paths {
            if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
                return Err(format!("{path} is not an absolute path without .."));
            }
        }
        if let Some(name) = run.mapped_memory.iter().find(|name| name.is_empty() || name.contains('/')) {
            return Err(format!("run.mapped_memory has {name:?}, which is not a program's file name"));
        }
        self.check_numbers()
    }

    fn check_numbers(&self) -> Result<(), String> {
        let (run, seconds) = (&self.run, self.ready.timeout_seconds);
        if run.port == 0 {
            return Err("run.port = 0 is no port".into());
        }
        if run.pids_max == 0 {
            return Err("run.pids_max = 0: not even the first process could start".into());
        }
        // Neither inf nor nan is in it, which TOML has and JSON, hence a manifest, has not.
        if !CPU_MAX.contains(&run.cpu_max) {
            let (least, most) = CPU_MAX.into_inner();
            return Err(format!("run.cpu_max = {}: cores, from {least} to {most}", run.cpu_max));
        }
        if !(1..=TIMEOUT_MAX).contains(&seconds) {
            return Err(format!("ready.timeout_seconds = {seconds}: from 1 to {TIMEOUT_MAX}"));
        }
        let sizes = [
            ("memory_max", Some(&run.memory_max)),
            ("io_read_max", run.io_read_max.as_ref()),
            ("io_write_max", run.io_write_max.as_ref()),
        ];
        for (name, size) in sizes {
            size.map(|size| units::bytes(size))
                .transpose()
                .map_err(|problem| format!("{name} = {problem}"))?;
        }
        Ok(())
    }
}
