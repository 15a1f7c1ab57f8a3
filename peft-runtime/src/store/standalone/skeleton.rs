//! A model made of adapters' keys: layers that have the right shapes and, without a base model, no weights.
//!
//! Planning, loading, combining and saving look at nothing else, so that they work on it as on a real model.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use candle_core::{DType, Device, Result as CandleResult, Tensor, bail};

use super::{BaseWeights, StoredAdapter};
use crate::ModulePath;
use crate::adapter::{Geometry, LayerShapes, split_layer_key};
use crate::config::PeftConfig;
use crate::error::{Error, Result};
use crate::layer::{Adapted, BaseLayer, ParameterMap};
use crate::module::{Cursor, CursorMut, Injectable};
use crate::schema::{Family, LayerKind, Schema};
use crate::store::load::{LoadReport, load_stored};

/// The model.
#[derive(Default)]
pub(crate) struct Skeleton {
    layer: Option<Adapted<Shell>>,
    children: Vec<(String, Skeleton)>,
}

/// A layer without its weight.
#[derive(Clone, Debug)]
pub(crate) struct Shell {
    path: ModulePath,
    geometry: Geometry,
    dtype: DType,
    /// The parameters that adapters bring values for.
    parameters: Vec<(&'static str, Tensor)>,
    base: Option<BaseWeights>,
}

impl Skeleton {
    /// The layers that any of `adapters` has tensors for.
    pub(crate) fn of(adapters: &[&StoredAdapter], base: Option<&BaseWeights>) -> Result<Self> {
        let mut shells: BTreeMap<ModulePath, Shell> = BTreeMap::new();
        for adapter in adapters {
            check_reach(adapter)?;
            add_layers(&mut shells, adapter, base)?;
        }
        for adapter in adapters {
            add_parameters(&mut shells, adapter, base)?;
        }
        let mut skeleton = Self::default();
        for (path, shell) in shells {
            let segments: Vec<&str> = path.segments().collect();
            skeleton.insert(&segments, shell);
        }
        skeleton.sort();
        Ok(skeleton)
    }

    /// Puts an adapter on the layers.
    pub(crate) fn load(
        &mut self,
        adapter: &StoredAdapter,
        config: &PeftConfig,
        name: &str,
    ) -> Result<LoadReport> {
        load_stored(self, adapter, config, name)
    }

    fn insert(&mut self, path: &[&str], shell: Shell) {
        let [name, rest @ ..] = path else {
            self.layer = Some(Adapted::new(shell));
            return;
        };
        match self.children.iter_mut().find(|(known, _)| known == name) {
            Some((_, child)) => child.insert(rest, shell),
            None => {
                let mut child = Self::default();
                child.insert(rest, shell);
                self.children.push(((*name).to_owned(), child));
            }
        }
    }

    fn sort(&mut self) {
        self.children.sort_by(|(a, _), (b, _)| by_number(a, b));
        self.children.iter_mut().for_each(|(_, child)| child.sort());
    }
}

/// Numbers in their order, and before names.
fn by_number(a: &str, b: &str) -> Ordering {
    match (a.parse::<u64>(), b.parse::<u64>()) {
        (Ok(a), Ok(b)) => a.cmp(&b),
        (Ok(_), Err(_)) => Ordering::Less,
        (Err(_), Ok(_)) => Ordering::Greater,
        (Err(_), Err(_)) => a.cmp(b),
    }
}

/// Refuses adapters whose keys do not tell where their tensors belong.
pub(crate) fn check_reach(adapter: &StoredAdapter) -> Result<()> {
    let selection = adapter.config().method().selection();
    let reason = if !selection.parameters.is_empty() {
        "it adapts bare parameters, and without a model its keys do not say which"
    } else if !selection.replication.is_empty() {
        "it repeats blocks of the base model, which takes a model"
    } else {
        return Ok(());
    };
    let (adapter, reason) = (adapter.name().to_owned(), reason.to_owned());
    Err(Error::Unsupported { operation: "read", adapter, reason })
}

/// Whether the config says that weights are stored as `[in, out]`.
pub(crate) fn is_transposed(config: &PeftConfig) -> bool {
    match config {
        PeftConfig::Lora(config) => config.fan_in_fan_out(),
        PeftConfig::AdaLora(config) => config.fan_in_fan_out(),
        PeftConfig::Ia3(config) => config.fan_in_fan_out(),
    }
}

/// The shapes of an adapter's tensors on the layer at `path`.
pub(crate) fn layer_shapes(adapter: &StoredAdapter, path: &str, ends: &[&str]) -> LayerShapes {
    let shape = |end: &&str| Some(((*end).to_owned(), adapter.shape(&format!("{path}.{end}"))?.to_vec()));
    ends.iter().filter_map(shape).collect()
}

fn add_layers(
    shells: &mut BTreeMap<ModulePath, Shell>,
    adapter: &StoredAdapter,
    base: Option<&BaseWeights>,
) -> Result<()> {
    let transposed = is_transposed(adapter.config());
    for (path, ends) in adapter.layer_keys() {
        let weight = base.and_then(|base| base.shape(path, "weight"));
        let shapes = layer_shapes(adapter, path, &ends);
        let Some(geometry) = Geometry::of_tensors(&shapes, weight, transposed) else {
            let reason = format!("`{path}` has {}, which make no adapter", ends.join(", "));
            return Err(adapter.of_weights(Error::Config { field: "state_dict", reason }));
        };
        let wide = |end: &&str| adapter.dtype(&format!("{path}.{end}")) == Some(safetensors::Dtype::F64);
        let dtype = if ends.iter().any(wide) { DType::F64 } else { DType::F32 };
        let path = ModulePath::from(path);
        match shells.get(&path) {
            Some(known) if known.geometry != geometry => {
                let reason = format!(
                    "by its tensors `{path}` is {geometry:?}, and by those of another one {:?}",
                    known.geometry
                );
                let adapter = adapter.name().to_owned();
                return Err(Error::Unsupported { operation: "combine", adapter, reason });
            }
            Some(_) => {}
            None => {
                let base = base.cloned();
                let shell = Shell { path: path.clone(), geometry, dtype, parameters: Vec::new(), base };
                shells.insert(path, shell);
            }
        }
    }
    Ok(())
}

/// Gives layers the parameters that the adapter has values for.
fn add_parameters(
    shells: &mut BTreeMap<ModulePath, Shell>,
    adapter: &StoredAdapter,
    base: Option<&BaseWeights>,
) -> Result<()> {
    for key in adapter.keys().into_iter().filter(|key| split_layer_key(key).is_none()) {
        let (Some((path, name)), Some(shape)) = (split_parameter(key), adapter.shape(key)) else { continue };
        let path = ModulePath::from(path);
        let shell = shells.entry(path.clone()).or_insert_with(|| Shell {
            path: path.clone(),
            geometry: Geometry::Opaque,
            dtype: DType::F32,
            parameters: Vec::new(),
            base: base.cloned(),
        });
        if shell.parameters.iter().any(|(known, _)| *known == name) {
            continue;
        }
        let own = base.filter(|base| base.shape(path.as_str(), name) == Some(shape));
        let tensor = match own {
            Some(base) => base.read(path.as_str(), name).map_err(Error::on_layer(&path))?,
            None => Tensor::zeros((), DType::F32, &Device::Cpu)?.broadcast_as(shape)?,
        };
        shell.parameters.push((name, tensor));
        // PyTorch's order.
        shell.parameters.sort_by_key(|(name, _)| *name != "weight");
    }
    Ok(())
}

/// The module and the name of a parameter of the base model, of which a key of an adapter's file has a value.
pub(crate) fn split_parameter(key: &str) -> Option<(&str, &'static str)> {
    let (path, name) = key.rsplit_once('.')?;
    let name = ["weight", "bias"].into_iter().find(|known| *known == name)?;
    let wrappers = [".token_adapter.base_layer", ".base_layer", ".original_module", ".modules_to_save"];
    let path = wrappers.into_iter().find_map(|wrapper| path.strip_suffix(wrapper)).unwrap_or(path);
    Some((path, name))
}

impl Injectable for Skeleton {
    const SCHEMA: &'static Schema = &Schema::unknown("Skeleton");

    fn visit<'a>(&'a self, cursor: &mut Cursor<'a>) {
        if let Some(layer) = &self.layer {
            cursor.flatten(layer);
        }
        for (name, child) in &self.children {
            cursor.child(name, child);
        }
    }

    fn visit_mut<'a>(&'a mut self, cursor: &mut CursorMut<'a>) {
        if let Some(layer) = &mut self.layer {
            cursor.flatten(layer);
        }
        for (name, child) in &mut self.children {
            cursor.child(name, child);
        }
    }
}

impl BaseLayer for Shell {
    const KIND: LayerKind = LayerKind::new("Linear", Family::Linear);

    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        self.parameters.iter().map(|(name, tensor)| (*name, tensor)).collect()
    }

    fn map_parameters(&self, map: &mut ParameterMap<'_>) -> Result<Self> {
        let parameters = self.parameters.iter().map(|(name, own)| Ok((*name, map(name, own)?)));
        Ok(Self { parameters: parameters.collect::<Result<_>>()?, ..self.clone() })
    }

    fn forward_base(&self, _: &Tensor) -> CandleResult<Tensor> {
        bail!("`{}` has no weight: it stands for a layer of a model", self.path)
    }

    fn dtype_and_device(&self) -> (DType, Device) {
        (self.dtype, Device::Cpu)
    }

    fn dense_weight(&self) -> CandleResult<Tensor> {
        match &self.base {
            Some(base) => base.read(self.path.as_str(), "weight"),
            None => bail!("the weight of `{}` is needed; give the base model", self.path),
        }
    }

    fn describe(&self) -> String {
        format!("{:?}", self.geometry)
    }
}
