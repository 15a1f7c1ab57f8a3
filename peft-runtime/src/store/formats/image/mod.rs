//! Adapters of image models: those of kohya's sd-scripts, ComfyUI and XLabs, of diffusers, and of LyCORIS.
//!
//! The formats differ in names: of the models of a pipeline (`component`), of modules (`names`), and of tensors (`key`). What a file
//! does to a module is put together from its tensors (`update`), cut or fused as the base model has the module (`place`, `layer`), and
//! written as LoHa or LoKr where all of a file is that and PEFT can hold it, otherwise as LoRA, which can hold every update.

mod blocks;
mod choice;
mod component;
mod delta;
mod exact;
mod export;
mod exported;
mod file;
mod flux;
mod flux_written;
mod key;
mod layer;
mod lengths;
mod loha;
mod lokr;
mod lora;
mod metadata;
mod names;
mod place;
mod read;
mod replaced;
mod unet;
mod update;
mod written;

use crate::error::{AdapterFileError, Result};
use crate::store::formats::format::{AdapterFormat, Imported};
use crate::store::formats::{Base, Source};

pub(in crate::store) use export::{diffusers, kohya};
pub(in crate::store) use exported::ExportedLayer;

/// One of the formats: all of them are read alike, and told apart for reports.
pub(super) struct ImageFormat {
    name: &'static str,
    /// Whether a key is one that only this format has.
    marks: fn(&str) -> bool,
    /// The field of a file's header that only this format has.
    header: Option<&'static str>,
    /// Whether names are those of modules; others mean something only together with the base model.
    names_modules: bool,
}

/// LyCORIS: LoHa, LoKr, whole differences and norms, or names that begin with `lycoris_`.
pub(super) static LYCORIS: ImageFormat = ImageFormat {
    name: "lycoris",
    marks: |key| {
        let is_other = || component::split(key).0.flat && key::is_of_another_method(key);
        key::is_of_lycoris(key) || key.starts_with("lycoris_") && key::split(key).is_some() || is_other()
    },
    header: None,
    names_modules: true,
};

/// sd-scripts and ComfyUI: `lora_unet_…` with `_` for dots, or the names of a model's own program.
pub(super) static KOHYA: ImageFormat = ImageFormat {
    name: "kohya",
    marks: |key| {
        key::split(key).is_some_and(|(module, _)| {
            let (component, rest) = component::split(module);
            let named = !component.prefix.is_empty() && !component.is_of_diffusers();
            named || component::is_of_image_model(rest) && key.contains(".lora_down.")
        })
    },
    header: None,
    names_modules: true,
};

/// XLabs: FLUX's modules with `processor` in their names.
pub(super) static XLABS: ImageFormat =
    ImageFormat { name: "xlabs", marks: key::is_of_xlabs, header: None, names_modules: false };

/// diffusers: `unet.…`, `transformer.…`, `text_encoder.…`, in the spellings of all its versions.
pub(super) static DIFFUSERS: ImageFormat = ImageFormat {
    name: "diffusers",
    marks: |key| {
        key::split(key).is_some_and(|(module, _)| {
            let (component, rest) = component::split(module);
            // Language models too have a `transformer`.
            let named = component.is_of_diffusers()
                && (component.prefix != "transformer." || !component::is_of_language_model(rest));
            named || key::is_spelt_by_diffusers(key) || component::is_of_image_model(rest)
        })
    },
    header: Some(metadata::FIELD),
    names_modules: true,
};

impl AdapterFormat for ImageFormat {
    fn name(&self) -> &'static str {
        self.name
    }

    fn recognises(&self, source: &Source) -> bool {
        let is_peft = source.config().is_some_and(|config| config.get("peft_type").is_some());
        let has_header = self.header.is_some_and(|field| source.metadata().contains_key(field));
        !is_peft && (has_header || source.names().iter().any(|key| (self.marks)(key)))
    }

    fn read(&self, source: &Source, base: Option<&Base>) -> Result<Imported> {
        if base.is_none() && !self.names_modules {
            let reason = format!("the names of {} are not those of modules", self.name);
            return Err(AdapterFileError::NeedsBase { reason }.into());
        }
        read::adapter(source, base)
    }
}
