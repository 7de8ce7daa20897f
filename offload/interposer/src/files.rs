//! What the program sees of the devices before it opens one: `/sys/class/uacce` and the nodes in
//! `/dev`, as plain files in a temporary folder that paths are redirected to.

use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use warpcore_offload::{Faults, Model, ModelKind};

const CLASS: &str = "/sys/class/uacce";

/// The devices of this process.
pub(crate) struct Files {
    /// `class/` is sysfs, `dev/` the nodes.
    folder: PathBuf,
    devices: Vec<Device>,
    /// Whose they are: a child has none of the threads.
    process: u32,
}

struct Device {
    name: &'static str,
    model: Model,
}

/// Where a path leads.
pub(crate) enum Place {
    /// A file or folder that stands for it.
    File(CString),
    /// The node of a device.
    Node(Model, CString),
}

/// Where `path` leads, if that is to do with us.
pub(crate) fn find(path: &CStr) -> Option<Place> {
    // Looked at first: nothing is made for a program that does not ask for accelerators.
    let bytes = path.to_bytes();
    let folder = FILES.get().and_then(|files| Some(files.as_ref()?.folder.as_os_str().as_bytes()));
    let ours = bytes.starts_with(CLASS.as_bytes())
        || bytes.starts_with(b"/dev/hisi_")
        || folder.is_some_and(|folder| bytes.starts_with(folder));
    if !ours {
        return None;
    }
    let files = FILES.get_or_init(Files::make).as_ref()?;
    (files.process == std::process::id())
        .then(|| files.find(Path::new(OsStr::from_bytes(bytes))))?
}

static FILES: OnceLock<Option<Files>> = OnceLock::new();

impl Files {
    /// None, said on stderr, if the environment asks for what is not there, or without a folder.
    fn make() -> Option<Self> {
        let made = models().and_then(|devices| {
            let folder = tempfile::Builder::new().prefix("warpcore-interposer-").tempdir();
            let folder = folder.map_err(|error| format!("no temporary folder: {error}"))?;
            let files = Self { folder: folder.keep(), devices, process: std::process::id() };
            files.write().map_err(|error| format!("{}: {error}", files.folder.display()))?;
            Ok(files)
        });
        match made {
            Ok(files) => {
                // SAFETY: takes nothing and returns nothing.
                unsafe { libc::atexit(remove) };
                Some(files)
            }
            Err(error) => {
                eprintln!("warpcore-interposer: there are no devices: {error}");
                None
            }
        }
    }

    fn write(&self) -> io::Result<()> {
        fs::create_dir_all(self.folder.join("dev"))?;
        for device in &self.devices {
            fs::write(self.folder.join("dev").join(device.name), "")?;
            fs::create_dir_all(self.folder.join("class").join(device.name).join("device"))?;
            self.refresh(device)?;
        }
        Ok(())
    }

    /// Writes the attributes as they are now. Each is replaced as a whole: others may be reading.
    fn refresh(&self, device: &Device) -> io::Result<()> {
        let folder = self.folder.join("class").join(device.name);
        let new = self.folder.join(format!("new-{:?}", std::thread::current().id()));
        for (name, text) in device.model.attributes()? {
            fs::write(&new, text + "\n")?;
            fs::rename(&new, folder.join(name))?;
        }
        Ok(())
    }

    fn find(&self, path: &Path) -> Option<Place> {
        let (inside, node) = if let Ok(rest) = path.strip_prefix(CLASS) {
            (self.folder.join("class").join(rest), None)
        } else if let Ok(rest) = path.strip_prefix("/dev") {
            (self.folder.join("dev").join(rest), Some(rest))
        } else {
            // A path that was made real.
            (path.to_owned(), path.strip_prefix(self.folder.join("dev")).ok())
        };
        let named = |name: &Path| self.devices.iter().find(|device| Path::new(device.name) == name);
        let file = CString::new(inside.clone().into_os_string().into_vec()).ok()?;
        if let Some(node) = node {
            return Some(Place::Node(named(node)?.model.clone(), file));
        }
        let class = self.folder.join("class");
        let name = inside.strip_prefix(&class).ok().and_then(|rest| rest.iter().next());
        if let Some(device) = name.and_then(|name| named(Path::new(name))) {
            // What cannot be written stays as it was.
            let _ = self.refresh(device);
        }
        Some(Place::File(file))
    }
}

extern "C" fn remove() {
    if let Some(Some(files)) = FILES.get()
        && files.process == std::process::id()
    {
        let _ = fs::remove_dir_all(&files.folder);
    }
}

/// The devices that the environment asks for.
fn models() -> Result<Vec<Device>, String> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let api = variable("WARPCORE_MODEL_API").unwrap_or_else(|| "v3".to_owned());
    let version = match api.as_str() {
        "v1" => 1,
        "v2" => 2,
        "v3" => 3,
        other => return Err(format!("WARPCORE_MODEL_API={other}: v1, v2 or v3")),
    };
    let instances = match variable("WARPCORE_MODEL_INSTANCES") {
        None => 64,
        Some(text) => match text.parse() {
            Ok(instances @ 0..=1024) => instances,
            _ => return Err(format!("WARPCORE_MODEL_INSTANCES={text}: 0 to 1024")),
        },
    };
    let faults = match variable("WARPCORE_MODEL_FAULTS") {
        None => None,
        Some(text) => Some(parse_faults(&text).ok_or_else(|| {
            format!("WARPCORE_MODEL_FAULTS={text}: SEED:PER_MILLE, two numbers, the second to 1000")
        })?),
    };
    let device = |name, kind| {
        let mut model = Model::new(kind).version(version).instances(instances);
        if let Some((seed, per_mille)) = faults {
            model = model.faults(Faults::seed(seed, per_mille));
        }
        Device { name, model: model.start() }
    };
    Ok(vec![device("hisi_zip-0", ModelKind::Zip), device("hisi_hpre-0", ModelKind::Hpre)])
}

fn parse_faults(text: &str) -> Option<(u64, u16)> {
    let (seed, per_mille) = text.split_once(':')?;
    let per_mille = per_mille.parse().ok().filter(|per_mille| *per_mille <= 1000)?;
    Some((seed.parse().ok()?, per_mille))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_a_seed_and_a_rate() {
        assert_eq!(parse_faults("7:50"), Some((7, 50)));
        for wrong in ["7", "7:1001", ":5", "7:", "x:5", "7:-1"] {
            assert_eq!(parse_faults(wrong), None, "{wrong}");
        }
    }
}
