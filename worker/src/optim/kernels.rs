//! Element-wise loops, compiled for AVX-512, AVX2 and the baseline and chosen at
//! run time. Rust never contracts a product and a sum, so all give the same bits.

/// Declares a safe function whose body is compiled once per instruction set.
macro_rules! vectorised {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? $body:block) => {
        $(#[$doc])*
        $vis fn $name($($arg: $type),*) $(-> $out)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $out)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
                fn avx512($($arg: $type),*) $(-> $out)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $type),*) $(-> $out)? {
                    body($($arg),*)
                }
                if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512dq") {
                    // SAFETY: the processor has what the function was compiled for.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}

/// Constants of one SGD update.
#[derive(Debug, Clone, Copy)]
pub(super) struct SgdStep {
    pub(super) lr: f32,
    pub(super) factor: f32,
    pub(super) momentum: f32,
    pub(super) weight_decay: f32,
}

/// Constants of one Adam or AdamW update.
#[derive(Debug, Clone, Copy)]
pub(super) struct AdamStep {
    /// The learning rate over the first moment's bias correction.
    pub(super) rate: f32,
    pub(super) factor: f32,
    pub(super) beta1: f32,
    pub(super) rest1: f32,
    pub(super) beta2: f32,
    pub(super) rest2: f32,
    pub(super) root_correct2: f32,
    pub(super) epsilon: f32,
    /// Adam: joins the gradient.
    pub(super) weight_decay: f32,
    /// AdamW: what weights are multiplied with first.
    pub(super) shrink: f32,
}

vectorised! {
    /// PyTorch's rule: `buf = momentum * buf + (g + weight_decay * w)`, `w -= lr * buf`.
    pub(super) fn sgd(step: &SgdStep, weights: &mut [f32], gradient: &[f32], momentum: &mut [f32]) {
        for ((w, g), buf) in weights.iter_mut().zip(gradient).zip(momentum) {
            let direction = g * step.factor + step.weight_decay * *w;
            *buf = step.momentum * *buf + direction;
            *w -= step.lr * *buf;
        }
    }
}

vectorised! {
    /// Kingma and Ba 2014 in PyTorch's form: `w -= lr / c1 * m / (sqrt(v) / sqrt(c2) + eps)`.
    pub(super) fn adam(step: &AdamStep, weights: &mut [f32], gradient: &[f32], m: &mut [f32], v: &mut [f32]) {
        for (((w, g), m), v) in weights.iter_mut().zip(gradient).zip(m).zip(v) {
            let g = g * step.factor + step.weight_decay * *w;
            *m = step.beta1 * *m + step.rest1 * g;
            *v = step.beta2 * *v + step.rest2 * g * g;
            *w = step.shrink * *w - step.rate * *m / (v.sqrt() / step.root_correct2 + step.epsilon);
        }
    }
}

/// Independent partial sums: enough for the loop to use whole vector registers.
const LANES: usize = 16;

vectorised! {
    pub(super) fn sum_of_squares(values: &[f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let (whole, rest) = values.as_chunks::<LANES>();
        for values in whole {
            for (lane, &value) in lanes.iter_mut().zip(values) {
                *lane += f64::from(value) * f64::from(value);
            }
        }
        let rest: f64 = rest.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        lanes.iter().sum::<f64>() + rest
    }
}

vectorised! {
    /// bf16 (given by its bits) to f32: exact.
    pub fn bf16_to_f32(from: &[u16], to: &mut [f32]) {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(from) << 16);
        }
    }
}

vectorised! {
    /// f32 to the bits of the nearest bf16, ties to even; a NaN stays one.
    pub fn f32_to_bf16(from: &[f32], to: &mut [u16]) {
        for (to, from) in to.iter_mut().zip(from) {
            let bits = from.to_bits();
            let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
            *to = if from.is_nan() { (bits >> 16) | 0x40 } else { rounded } as u16;
        }
    }
}
