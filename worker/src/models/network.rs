//! The door through which every model comes: what a burn module has to say for itself to be
//! trained, whether it is one of ours or a user's own.

use std::fmt::Debug;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
#[cfg(feature = "libtorch")]
use burn::tensor::DispatchTensor;
use burn::tensor::{Device, FloatDType, Gradients, Tensor, TensorData};

use super::pass::Pass;
use crate::data::Dropout;

/// A network in two parts, so that the backward pass can be cut between them and
/// the gradients of the classifier (most of the bytes of AlexNet) can travel
/// while those of the features are still being computed.
///
/// The module's parameters are named by its fields, such as `block.0.conv1.weight`. Those of
/// two dimensions are the weights of dense layers, and `classifier` begins with the first
/// dense layer: what the module's fields have before it belongs to `features`. Every dense
/// layer goes through [`Pass::dense`], once and in the order of the fields, and every batch
/// normalisation through [`Pass::batch_norm`], once.
pub trait Network: Module + 'static {
    /// `[n, channels, size, size]` to `[n, features]`. Models without convolutions take the
    /// pixels, row by row, as they are.
    fn features(&self, images: Tensor<4>, pass: &mut Pass) -> Tensor<2> {
        let _ = pass;
        images.flatten(1, 3)
    }

    /// `[n, features]` to logits `[n, classes]`.
    fn classifier(&self, features: Tensor<2>, pass: &mut Pass) -> Tensor<2>;

    /// The places where [`Pass::dropout`] acts, in the order of the forward pass.
    fn dropouts(&self) -> Vec<Dropout> {
        Vec::new()
    }

    /// What in the network has no deterministic kernel on CUDA, if anything: a reproducible
    /// run on a GPU is then refused.
    fn not_deterministic_on_cuda(&self) -> Option<&'static str> {
        None
    }
}

/// A float tensor of a module.
pub(crate) struct Leaf<'a> {
    /// From the module's root, such as `conv1.weight`.
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) tensor: &'a dyn LeafTensor,
}

/// What a tensor of a module is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A parameter that follows its gradient.
    Trained,
    /// The same, which multiplies what a norm makes: it begins as 1.
    Scale,
    /// A statistic of the batches so far, of a batch normalisation.
    RunningMean,
    RunningVariance,
}

impl Role {
    /// Whether it follows the batches' statistics instead of a gradient.
    pub fn is_running(self) -> bool {
        matches!(self, Self::RunningMean | Self::RunningVariance)
    }

    /// Of the field `name` of a module of this type, as burn's visitors name it.
    fn of(name: &str, container: &str) -> Self {
        match (container, name) {
            ("Struct:BatchNorm", "running_mean") => Self::RunningMean,
            ("Struct:BatchNorm", "running_var") => Self::RunningVariance,
            // What burn's norms call their scale.
            (_, "gamma") => Self::Scale,
            _ => Self::Trained,
        }
    }
}

/// A tensor whose number of dimensions is not known to the compiler.
pub(crate) trait LeafTensor {
    fn id(&self) -> ParamId;

    /// Without making its values.
    fn shape(&self) -> Vec<usize>;

    /// Its gradient, flat, if the backward pass has reached it.
    fn gradient(&self, gradients: &Gradients) -> Option<Tensor<1>>;
}

impl<const D: usize> LeafTensor for Param<Tensor<D>> {
    fn id(&self) -> ParamId {
        self.id
    }

    fn shape(&self) -> Vec<usize> {
        self.lazy_shape().iter().copied().collect()
    }

    fn gradient(&self, gradients: &Gradients) -> Option<Tensor<1>> {
        let gradient = self.val().grad(gradients)?;
        let values = gradient.shape().num_elements();
        Some(gradient.reshape([values]))
    }
}

/// What takes the place of a tensor of a module.
pub(crate) enum NewLeaf<'a> {
    /// These values, row-major, on a device and in a number format, with a gradient or without.
    #[cfg_attr(not(any(feature = "flex", test)), allow(dead_code))]
    Values { values: &'a [f32], shape: &'a [usize], device: &'a Device, precision: FloatDType, learns: bool },
    /// A tensor as it is.
    #[cfg(feature = "libtorch")]
    Tensor(DispatchTensor),
}

impl NewLeaf<'_> {
    fn make<const D: usize>(self) -> Tensor<D> {
        match self {
            Self::Values { values, shape, device, precision, learns } => {
                let data = TensorData::new(values.to_vec(), shape.to_vec());
                let tensor = Tensor::<D>::from_data(data, device).cast(precision);
                if learns { tensor.require_grad() } else { tensor }
            }
            #[cfg(feature = "libtorch")]
            Self::Tensor(tensor) => Tensor::from_dispatch(tensor),
        }
    }
}

/// A [`Network`] whose type is not known to the compiler.
pub(crate) trait AnyNetwork: Debug + Send {
    fn features(&self, images: Tensor<4>, pass: &mut Pass) -> Tensor<2>;

    fn classifier(&self, features: Tensor<2>, pass: &mut Pass) -> Tensor<2>;

    fn dropouts(&self) -> Vec<Dropout>;

    fn not_deterministic_on_cuda(&self) -> Option<&'static str>;

    /// Calls `each` with every tensor in the order of the flat state: that of the module's
    /// fields, running statistics after all that is trained.
    fn visit(&self, each: &mut dyn FnMut(Leaf<'_>));

    /// Replaces every tensor, in the same order, by what `make` gives.
    fn map<'a>(self: Box<Self>, make: &mut dyn FnMut() -> NewLeaf<'a>) -> Box<dyn AnyNetwork>;
}

impl<N: Network> AnyNetwork for N {
    fn features(&self, images: Tensor<4>, pass: &mut Pass) -> Tensor<2> {
        Network::features(self, images, pass)
    }

    fn classifier(&self, features: Tensor<2>, pass: &mut Pass) -> Tensor<2> {
        Network::classifier(self, features, pass)
    }

    fn dropouts(&self) -> Vec<Dropout> {
        Network::dropouts(self)
    }

    fn not_deterministic_on_cuda(&self) -> Option<&'static str> {
        Network::not_deterministic_on_cuda(self)
    }

    fn visit(&self, each: &mut dyn FnMut(Leaf<'_>)) {
        for running in [false, true] {
            Module::visit(self, &mut Visitor { path: Path::default(), running, each: &mut *each });
        }
    }

    fn map<'a>(self: Box<Self>, make: &mut dyn FnMut() -> NewLeaf<'a>) -> Box<dyn AnyNetwork> {
        let trained = Module::map(*self, &mut Mapper { path: Path::default(), running: false, make: &mut *make });
        Box::new(Module::map(trained, &mut Mapper { path: Path::default(), running: true, make }))
    }
}

/// Where in a module a visitor is: names of fields, and the types that have them.
#[derive(Default)]
struct Path(Vec<(String, String)>);

impl Path {
    fn enter(&mut self, name: &str, container: &str) {
        self.0.push((name.to_owned(), container.to_owned()));
    }

    fn role(&self) -> Role {
        self.0.last().map_or(Role::Trained, |(name, container)| Role::of(name, container))
    }

    fn name(&self) -> String {
        self.0.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(".")
    }
}

struct Visitor<'a> {
    path: Path,
    running: bool,
    each: &'a mut dyn FnMut(Leaf<'_>),
}

impl ModuleVisitor for Visitor<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.0.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let role = self.path.role();
        if role.is_running() == self.running {
            (self.each)(Leaf { name: self.path.name(), role, tensor: param });
        }
    }
}

struct Mapper<'a, 'b> {
    path: Path,
    running: bool,
    make: &'a mut dyn FnMut() -> NewLeaf<'b>,
}

impl ModuleMapper for Mapper<'_, '_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.0.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.path.role().is_running() != self.running {
            return param;
        }
        Param::initialized(param.id, (self.make)().make())
    }
}
