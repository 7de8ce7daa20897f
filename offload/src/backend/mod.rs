//! What does the work: one folder each.

#[cfg(test)]
mod conformance;
mod software;

pub(crate) use software::Software;

/// A backend as `warpcore devices` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Device {
    /// Name of the backend.
    pub name: &'static str,
    /// What it does, one line each.
    pub does: Vec<String>,
    /// Whether it is used here, and if not, why not.
    pub state: &'static str,
}

/// Every backend of this build, and what it does on this machine.
pub fn devices() -> Vec<Device> {
    vec![software::device()]
}
