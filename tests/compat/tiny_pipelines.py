"""Tiny pipelines of many architectures, with random weights: each a few layers of the public configuration's shape.

A recipe is a function under its own name in `RECIPES`; it returns the pipeline and the options of one call, without
steps, generator and kind of output.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    T2IAdapter,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
)

import pruning_lib

diffusers.logging.set_verbosity_error()

STEPS = 4
SIDE = 8  # of a latent


@dataclass
class Case:
    """A pipeline, and what one call of it gets: `options`, and `prompts` where it takes texts or classes.

    `steps` is the number that the pipeline is called with; `count` the number of pictures the call draws.
    """

    pipe: DiffusionPipeline
    options: dict
    prompt: object = None
    steps: int = STEPS
    output: dict | None = None

    def __call__(self, seed: int = 0, **more) -> Tensor:
        """Return the latents of one run."""
        options = {"num_inference_steps": self.steps, **self.options, **more}
        if self.prompt is not None:
            options.setdefault(self.prompt[0], self.prompt[1])
        options.setdefault("generator", torch.Generator().manual_seed(seed))
        options.update({"output_type": "latent"} if self.output is None else self.output)
        torch.manual_seed(seed)  # some pipelines draw from the global generator too
        result = self.pipe(**options)
        first = result[0] if isinstance(result, (tuple, list)) else next(iter(result.values()))
        while isinstance(first, list):
            first = first[0]
        return torch.as_tensor(first).clone()


CONFIGS = json.loads((Path(__file__).parent / "configs.json").read_text("utf-8"))


def written(name: str) -> dict:
    """Return the arguments of a tiny model; lists in the file are tuples to some classes."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in CONFIGS[name].items()}


RECIPES: dict[str, Callable[[], Case]] = {}


def recipe(build: Callable[[], Case]) -> Callable[[], Case]:
    """Register a recipe; its weights are drawn from one seed, zeros included, so that every layer matters."""

    @functools.wraps(build)
    def seeded() -> Case:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            case = build()
            for part in case.pipe.components.values():
                if isinstance(part, nn.Module):
                    part.eval().requires_grad_(True)
                    for weight in part.parameters():
                        weight.data += 0.1 * torch.randn_like(weight)
        case.pipe.set_progress_bar_config(disable=True)
        return case

    RECIPES[build.__name__] = seeded
    return seeded


# --- parts --------------------------------------------------------------------------------------------------------


@functools.cache
def _tokenizer():
    tokenizer = pruning_lib.load("emoji-sd").tokenizer
    tokenizer.model_max_length = 16
    return tokenizer


def clip(width: int = 8, projection: int | None = None) -> nn.Module:
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(_tokenizer()),
        max_position_embeddings=16,
        projection_dim=projection or width,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5(width: int = 8) -> nn.Module:
    return T5EncoderModel(
        T5Config(d_model=width, d_ff=16, num_layers=1, num_heads=2, d_kv=4, vocab_size=len(_tokenizer()))
    )


def clip_image(width: int = 8, size: int = 16) -> nn.Module:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=size,
            patch_size=size // 2,
            projection_dim=width,
        )
    )


def image_processor():
    return CLIPImageProcessor(size=16, crop_size=16)


def vae(channels: int = 4, **config) -> AutoencoderKL:
    """An autoencoder that does not change the size."""
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=channels, **config)


def unet(**config) -> UNet2DConditionModel:
    defaults = written("unet")
    return UNet2DConditionModel(**{**defaults, **config})


def picture(channels: int = 3, side: int = SIDE, batch: int = 1) -> Tensor:
    return torch.linspace(0, 1, batch * channels * side * side).reshape(batch, channels, side, side)


def pil(side: int = 16) -> Image.Image:
    return Image.fromarray((picture(side=side)[0].permute(1, 2, 0).numpy() * 255).astype("uint8"))


def tokens(width: int, length: int = 5) -> Tensor:
    return torch.randn(1, length, width)


PROMPT = ("prompt", ["lion"])


def stable_diffusion(cls=diffusers.StableDiffusionPipeline, scheduler=None, net=None, *, more=None, **options) -> Case:
    parts = dict(
        vae=vae(),
        text_encoder=clip(),
        tokenizer=_tokenizer(),
        unet=net or unet(),
        scheduler=scheduler or DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
    )
    pipe = cls(**{**parts, **(more or {})})
    return Case(pipe, {"guidance_scale": 3.0, **options}, PROMPT)


def sized(**options) -> dict:
    return {"height": SIDE, "width": SIDE, **options}


# --- Stable Diffusion and its kin -----------------------------------------------------------------------------------


@recipe
def sd() -> Case:
    return stable_diffusion(**sized())


@recipe
def sd_v_prediction() -> Case:
    return stable_diffusion(scheduler=DDIMScheduler(prediction_type="v_prediction"), **sized())


for _name in (
    "PNDM",
    "LMSDiscrete",
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "HeunDiscrete",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "UniPCMultistep",
    "DEISMultistep",
    "KDPM2Discrete",
    "KDPM2AncestralDiscrete",
    "DDPM",
    "SASolver",
    "LCM",
):

    def _build(name=_name) -> Case:
        config = {"use_karras_sigmas": False} if name == "DPMSolverMultistep" else {}
        return stable_diffusion(scheduler=getattr(diffusers, f"{name}Scheduler")(**config), **sized())

    _build.__name__ = f"sd_{_name.lower()}"
    recipe(_build)


@recipe
def sd_img2img() -> Case:
    return stable_diffusion(diffusers.StableDiffusionImg2ImgPipeline, image=picture(), strength=0.8)


@recipe
def sd_inpaint() -> Case:
    mask = (picture(1) > 0.5).float()
    return stable_diffusion(
        diffusers.StableDiffusionInpaintPipeline, net=unet(in_channels=9), **sized(image=picture(), mask_image=mask)
    )


@recipe
def sd_inpaint_four_channels() -> Case:
    mask = (picture(1) > 0.5).float()
    return stable_diffusion(diffusers.StableDiffusionInpaintPipeline, **sized(image=picture(), mask_image=mask))


def controlnet(net: nn.Module, **config) -> ControlNetModel:
    return ControlNetModel.from_unet(net, conditioning_channels=3, load_weights_from_unet=False, **config)


def _control(net: nn.Module) -> ControlNetModel:
    return ControlNetModel(
        **{
            key: net.config[key]
            for key in (
                "layers_per_block",
                "block_out_channels",
                "cross_attention_dim",
                "attention_head_dim",
                "norm_num_groups",
                "down_block_types",
                "addition_embed_type",
                "addition_time_embed_dim",
                "projection_class_embeddings_input_dim",
                "use_linear_projection",
            )
        },
        conditioning_embedding_out_channels=(8,),
    )


@recipe
def sd_controlnet() -> Case:
    net = unet()
    return stable_diffusion(
        diffusers.StableDiffusionControlNetPipeline, net=net, more={"controlnet": _control(net)}, image=picture()
    )


@recipe
def sd_controlnet_img2img() -> Case:
    net = unet()
    return stable_diffusion(
        diffusers.StableDiffusionControlNetImg2ImgPipeline,
        net=net,
        more={"controlnet": _control(net)},
        image=picture(),
        control_image=picture(),
        strength=0.8,
    )


@recipe
def sd_adapter() -> Case:
    adapter = T2IAdapter(channels=[8, 16], num_res_blocks=1, downscale_factor=1, adapter_type="full_adapter")
    return stable_diffusion(diffusers.StableDiffusionAdapterPipeline, more={"adapter": adapter}, image=picture())


@recipe
def sd_ip_adapter() -> Case:
    case = stable_diffusion(more={"image_encoder": clip_image(), "feature_extractor": image_processor()}, **sized())
    give_ip_adapter(case.pipe.unet)
    case.options["ip_adapter_image_embeds"] = [torch.randn(2, 1, 8)]
    return case


def give_ip_adapter(net: nn.Module) -> None:
    """Give a UNet an image adapter, as `load_ip_adapter` does with weights from a hub."""
    widths = {name: attention.to_q.in_features for name, attention in net.named_modules() if name.endswith("attn2")}
    keys = {}
    for place, width in enumerate(widths.values()):
        for kind in ("k", "v"):
            keys[f"{2 * place + 1}.to_{kind}_ip.weight"] = 0.5 * torch.randn(width, net.config.cross_attention_dim)
    projection = {
        "proj.weight": torch.randn(4 * net.config.cross_attention_dim, 8),
        "proj.bias": torch.zeros(4 * net.config.cross_attention_dim),
        "norm.weight": torch.ones(net.config.cross_attention_dim),
        "norm.bias": torch.zeros(net.config.cross_attention_dim),
    }
    net._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": keys}], low_cpu_mem_usage=False)


@recipe
def lcm() -> Case:
    net = unet(time_cond_proj_dim=8)
    more = {"image_encoder": None, "requires_safety_checker": False}
    return stable_diffusion(
        diffusers.LatentConsistencyModelPipeline, diffusers.LCMScheduler(), net, more=more, **sized()
    )


@recipe
def pix2pix() -> Case:
    return stable_diffusion(
        diffusers.StableDiffusionInstructPix2PixPipeline,
        net=unet(in_channels=8),
        image=picture(),
        image_guidance_scale=1.5,
    )


@recipe
def sd_upscale() -> Case:
    more = {"low_res_scheduler": diffusers.DDPMScheduler(), "watermarker": None}
    case = stable_diffusion(
        diffusers.StableDiffusionUpscalePipeline,
        net=unet(in_channels=7, num_class_embeds=100),
        more=more,
        image=picture(),
        noise_level=20,
    )
    return case


@recipe
def sd_latent_upscale() -> Case:
    net = UNet2DConditionModel(**written("sd_latent_upscale"))
    pipe = diffusers.StableDiffusionLatentUpscalePipeline(
        vae(), None, None, net, EulerDiscreteScheduler(prediction_type="sample")
    )
    pooled = torch.randn(1, 8)
    return Case(
        pipe,
        dict(
            image=picture(),
            prompt_embeds=tokens(8),
            pooled_prompt_embeds=pooled,
            guidance_scale=3.0,
            negative_prompt_embeds=tokens(8),
            negative_pooled_prompt_embeds=-pooled,
        ),
    )


@recipe
def image_variation() -> Case:
    pipe = diffusers.StableDiffusionImageVariationPipeline(
        vae(), clip_image(), unet(), DDIMScheduler(), None, image_processor(), requires_safety_checker=False
    )
    return Case(pipe, sized(image=picture(side=16), guidance_scale=3.0))


@recipe
def sd_pag() -> Case:
    return stable_diffusion(
        diffusers.StableDiffusionPAGPipeline, more={"pag_applied_layers": ["mid"]}, **sized(pag_scale=2.0)
    )


@recipe
def sd_sag() -> Case:
    return stable_diffusion(diffusers.StableDiffusionSAGPipeline, **sized(sag_scale=0.75))


@recipe
def panorama() -> Case:
    return stable_diffusion(
        diffusers.StableDiffusionPanoramaPipeline, height=SIDE, width=2 * SIDE, circular_padding=False
    )


def boxed(**options) -> Case:
    return stable_diffusion(
        diffusers.StableDiffusionGLIGENPipeline,
        net=unet(attention_type="gated"),
        **sized(gligen_phrases=["a lion"], gligen_boxes=[[0.1, 0.2, 0.6, 0.8]], **options),
    )


@recipe
def gligen() -> Case:
    return boxed()


@recipe
def gligen_throughout() -> Case:
    return boxed(gligen_scheduled_sampling_beta=1.0)


@recipe
def sd_freeu() -> Case:
    case = stable_diffusion(net=unet(block_out_channels=(8, 16), up_block_types=("CrossAttnUpBlock2D",) * 2), **sized())
    case.pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    return case


# --- SDXL and its kin ---------------------------------------------------------------------------------------------


def xl(cls=diffusers.StableDiffusionXLPipeline, net=None, *, more=None, **options) -> Case:
    parts = dict(
        vae=vae(),
        text_encoder=clip(8),
        text_encoder_2=clip(8, 8),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        unet=net or xl_unet(),
        scheduler=EulerDiscreteScheduler(),
        image_encoder=None,
        feature_extractor=None,
    )
    options = {"guidance_scale": 3.0, **options}
    return Case(cls(**{**parts, **(more or {})}), options, PROMPT)


def xl_unet(**config) -> UNet2DConditionModel:
    defaults = written("xl_unet")
    return unet(**{**defaults, **config})


@recipe
def sdxl() -> Case:
    return xl(**sized())


@recipe
def sdxl_turbo() -> Case:
    return xl(**sized(guidance_scale=0.0))


@recipe
def ssd_1b() -> Case:
    """The middle block is gone, and levels differ in depth, as in the distilled SSD-1B."""
    return xl(net=xl_unet(mid_block_type=None, reverse_transformer_layers_per_block=[[1, 1], [1, 1]]), **sized())


@recipe
def sdxl_img2img() -> Case:
    return xl(diffusers.StableDiffusionXLImg2ImgPipeline, image=picture(), strength=0.8)


@recipe
def sdxl_refiner() -> Case:
    net = xl_unet(projection_class_embeddings_input_dim=8 + 5 * 4, cross_attention_dim=8)
    more = {"text_encoder": None, "tokenizer": None, "requires_aesthetics_score": True}
    return xl(diffusers.StableDiffusionXLImg2ImgPipeline, net, more=more, image=picture(), strength=0.6)


@recipe
def sdxl_inpaint() -> Case:
    mask = (picture(1) > 0.5).float()
    return xl(diffusers.StableDiffusionXLInpaintPipeline, **sized(image=picture(), mask_image=mask))


@recipe
def sdxl_controlnet() -> Case:
    net = xl_unet()
    return xl(diffusers.StableDiffusionXLControlNetPipeline, net, more={"controlnet": _control(net)}, image=picture())


@recipe
def sdxl_adapter() -> Case:
    adapter = T2IAdapter(channels=[8, 16], num_res_blocks=1, downscale_factor=1, adapter_type="full_adapter")
    net = xl_unet(down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2)
    return xl(diffusers.StableDiffusionXLAdapterPipeline, net, more={"adapter": adapter}, **sized(image=picture()))


@recipe
def sdxl_pag() -> Case:
    return xl(diffusers.StableDiffusionXLPAGPipeline, more={"pag_applied_layers": ["mid"]}, **sized(pag_scale=2.0))


# --- other UNets ----------------------------------------------------------------------------------------------------


def unet2d(**config) -> UNet2DModel:
    defaults = written("unet2d")
    return UNet2DModel(**{**defaults, **config})


NUMPY = {"output_type": "np"}


@recipe
def ddpm() -> Case:
    return Case(diffusers.DDPMPipeline(unet2d(), diffusers.DDPMScheduler()), {}, output=NUMPY)


@recipe
def ddim() -> Case:
    return Case(diffusers.DDIMPipeline(unet2d(), DDIMScheduler()), {}, output=NUMPY)


@recipe
def unconditional_latents() -> Case:
    vq = VQModel(block_out_channels=(8,), norm_num_groups=4, latent_channels=3, num_vq_embeddings=8)
    return Case(diffusers.LDMPipeline(vq, unet2d(), DDIMScheduler()), {}, output=NUMPY)


@recipe
def ncsnpp() -> Case:
    """The score network of the VE-SDE, with scaled residuals, sampled by a scheduler that has steps."""
    net = unet2d(**written("ncsnpp"))
    return Case(diffusers.DDIMPipeline(net, DDIMScheduler(steps_offset=1)), {}, output=NUMPY)


@recipe
def score_sde_ve() -> Case:
    net = unet2d(time_embedding_type="fourier", mid_block_scale_factor=2**0.5)
    return Case(diffusers.ScoreSdeVePipeline(net, diffusers.ScoreSdeVeScheduler()), {}, output=NUMPY)


@recipe
def consistency_model() -> Case:
    net = unet2d(num_class_embeds=4)
    scheduler = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=40, sigma_min=0.002, sigma_max=80.0)
    return Case(diffusers.ConsistencyModelPipeline(net, scheduler), {"class_labels": 1}, output=NUMPY)


@recipe
def repaint() -> Case:
    pipe = diffusers.RePaintPipeline(unet2d(), diffusers.RePaintScheduler())
    mask = (picture(1) > 0.5).float()
    return Case(
        pipe, {"image": picture(), "mask_image": mask, "eta": 0.0, "jump_length": 2, "jump_n_sample": 2}, output=NUMPY
    )


@recipe
def dance_diffusion() -> Case:
    net = diffusers.UNet1DModel(**written("dance_diffusion"))
    pipe = diffusers.DanceDiffusionPipeline(net, diffusers.IPNDMScheduler())
    return Case(pipe, {"audio_length_in_s": 1.0}, output={})


def audio_pipe(cls, net, **parts):
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    vocoder = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=8,
            sampling_rate=16000,
            upsample_initial_channel=16,
            upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4],
            resblock_kernel_sizes=[3, 7],
            normalize_before=False,
            resblock_dilation_sizes=[[1, 3], [1, 3]],
        )
    )
    everything = dict(
        vae=vae(in_channels=1, out_channels=1),
        text_encoder=clip(),
        text_encoder_2=t5(),
        projection_model=None,
        language_model=None,
        tokenizer=None,
        tokenizer_2=None,
        feature_extractor=None,
        unet=net,
        scheduler=DDIMScheduler(),
        vocoder=vocoder,
    )
    import inspect

    known = inspect.signature(cls.__init__).parameters
    return cls(**{key: value for key, value in {**everything, **parts}.items() if key in known})


@recipe
def audioldm() -> Case:
    net = unet(**written("audioldm"))
    options = dict(prompt_embeds=torch.randn(1, 8), negative_prompt_embeds=torch.randn(1, 8), audio_length_in_s=0.032)
    return Case(audio_pipe(diffusers.AudioLDMPipeline, net), options)


@recipe
def kandinsky22() -> Case:
    net = kandinsky_unet()
    pipe = diffusers.KandinskyV22Pipeline(net, diffusers.DDPMScheduler(), movq())
    image = torch.randn(1, 16)
    return Case(pipe, dict(image_embeds=image, negative_image_embeds=-image, height=32, width=32, guidance_scale=3.0))


def movq() -> VQModel:
    return VQModel(**written("movq"))


def kandinsky_unet() -> UNet2DConditionModel:
    return unet(**written("kandinsky_unet"))


@recipe
def kandinsky3() -> Case:
    net = diffusers.Kandinsky3UNet(**written("kandinsky3"))
    pipe = diffusers.Kandinsky3Pipeline(_tokenizer(), t5(8), net, diffusers.DDPMScheduler(), movq())
    return Case(pipe, {"height": 64, "width": 64, "guidance_scale": 3.0}, PROMPT)


@recipe
def deepfloyd() -> Case:
    net = if_unet()
    pipe = diffusers.IFPipeline(
        _tokenizer(),
        t5(8),
        net,
        diffusers.DDPMScheduler(
            variance_type="learned_range", prediction_type="epsilon", thresholding=True, dynamic_thresholding_ratio=0.95
        ),
        None,
        None,
        None,
        requires_safety_checker=False,
    )
    return Case(pipe, sized(guidance_scale=3.0), PROMPT, output={"output_type": "pt"})


def if_unet(**config) -> UNet2DConditionModel:
    defaults = written("if_unet")
    return unet(**{**defaults, **config})


@recipe
def deepfloyd_upscale() -> Case:
    net = if_unet(in_channels=6, class_embed_type="timestep")
    pipe = diffusers.IFSuperResolutionPipeline(
        _tokenizer(),
        t5(8),
        net,
        diffusers.DDPMScheduler(variance_type="learned_range"),
        diffusers.DDPMScheduler(),
        None,
        None,
        None,
        requires_safety_checker=False,
    )
    return Case(pipe, sized(image=picture(), guidance_scale=3.0), PROMPT, output={"output_type": "pt"})


@recipe
def animatediff() -> Case:
    net = unet()
    adapter = diffusers.MotionAdapter(**written("animatediff"))
    pipe = diffusers.AnimateDiffPipeline(vae(), clip(), _tokenizer(), net, adapter, DDIMScheduler())
    return Case(pipe, sized(num_frames=2, guidance_scale=3.0), PROMPT)


@recipe
def stable_video() -> Case:
    net = diffusers.UNetSpatioTemporalConditionModel(**written("stable_video"))
    video = diffusers.AutoencoderKLTemporalDecoder(block_out_channels=(32,), latent_channels=4)
    scheduler = EulerDiscreteScheduler(
        prediction_type="v_prediction",
        timestep_type="continuous",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    )
    pipe = diffusers.StableVideoDiffusionPipeline(video, clip_image(size=224), net, scheduler, CLIPImageProcessor())
    return Case(pipe, sized(image=pil(), num_frames=2, min_guidance_scale=1.0, max_guidance_scale=2.5))


@recipe
def text_to_video() -> Case:
    net = diffusers.UNet3DConditionModel(**written("text_to_video"))
    pipe = diffusers.TextToVideoSDPipeline(vae(), clip(), _tokenizer(), net, DDIMScheduler())
    return Case(pipe, sized(num_frames=2, guidance_scale=3.0), PROMPT)


@recipe
def stable_cascade_prior() -> Case:
    net = diffusers.StableCascadeUNet(**written("stable_cascade_prior"))
    pipe = diffusers.StableCascadePriorPipeline(
        _tokenizer(), clip(8, 8), net, diffusers.DDPMWuerstchenScheduler(), resolution_multiple=4
    )
    return Case(pipe, {"height": 32, "width": 32, "guidance_scale": 3.0}, PROMPT, output={"output_type": "pt"})


@recipe
def marigold() -> Case:
    pipe = diffusers.MarigoldDepthPipeline(
        unet(in_channels=8),
        vae(),
        DDIMScheduler(prediction_type="v_prediction"),
        clip(),
        _tokenizer(),
        prediction_type="depth",
        scale_invariant=True,
        shift_invariant=True,
    )
    return Case(pipe, dict(image=picture(side=16), processing_resolution=0, match_input_resolution=False), output=NUMPY)


# --- transformers ---------------------------------------------------------------------------------------------------


def masked(width: int, *, length: int = 5, mask: str = "prompt_attention_mask", dtype=torch.float32, both=True) -> dict:
    """Embeddings of a text and of a negative one, with their masks."""
    ones = torch.ones(1, length, dtype=dtype)
    options = {"prompt_embeds": tokens(width, length), mask: ones}
    if both:
        options |= {"negative_prompt_embeds": tokens(width, length), f"negative_{mask}": ones}
    return options


@recipe
def dit() -> Case:
    net = diffusers.DiTTransformer2DModel(**written("dit"))
    pipe = diffusers.DiTPipeline(net, vae(), DDIMScheduler(clip_sample=False))
    return Case(pipe, {"guidance_scale": 3.0}, ("class_labels", [1]), output=NUMPY)


def pixart_net(**config) -> nn.Module:
    defaults = written("pixart")
    return diffusers.PixArtTransformer2DModel(**{**defaults, **config})


def pixart(cls, **options) -> Case:
    pipe = cls(_tokenizer(), t5(), vae(), pixart_net(), diffusers.DPMSolverMultistepScheduler())
    return Case(pipe, sized(use_resolution_binning=False, guidance_scale=3.0, **options), PROMPT)


@recipe
def pixart_alpha() -> Case:
    return pixart(diffusers.PixArtAlphaPipeline)


@recipe
def pixart_sigma() -> Case:
    return pixart(diffusers.PixArtSigmaPipeline, max_sequence_length=9)


@recipe
def pixart_pag() -> Case:
    case = pixart(diffusers.PixArtSigmaPipeline)
    parts = dict(case.pipe.components)
    case.pipe = diffusers.PixArtSigmaPAGPipeline(**parts, pag_applied_layers=["blocks.1"])
    case.options["pag_scale"] = 2.0
    return case


def sd3_net(**config) -> nn.Module:
    defaults = written("sd3")
    return diffusers.SD3Transformer2DModel(**{**defaults, **config})


def sd3_case(cls=diffusers.StableDiffusion3Pipeline, net=None, *, more=None, **options) -> Case:
    parts = dict(
        transformer=net or sd3_net(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(shift_factor=0.1),
        text_encoder=clip(8, 8),
        tokenizer=_tokenizer(),
        text_encoder_2=clip(8, 8),
        tokenizer_2=_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe = cls(**{**parts, **(more or {})})
    return Case(pipe, {"guidance_scale": 3.0, "max_sequence_length": 7, **options}, PROMPT)


@recipe
def sd3() -> Case:
    return sd3_case(**sized())


@recipe
def sd3_img2img() -> Case:
    return sd3_case(diffusers.StableDiffusion3Img2ImgPipeline, **sized(image=picture(), strength=0.8))


@recipe
def sd3_controlnet() -> Case:
    net = sd3_net()
    control = diffusers.SD3ControlNetModel.from_transformer(net, num_layers=1, num_extra_conditioning_channels=0)
    return sd3_case(
        diffusers.StableDiffusion3ControlNetPipeline,
        net,
        more={"controlnet": control},
        **sized(control_image=picture()),
    )


@recipe
def sd3_pag() -> Case:
    return sd3_case(
        diffusers.StableDiffusion3PAGPipeline,
        more={"pag_applied_layers": ["transformer_blocks.1"]},
        **sized(pag_scale=2.0),
    )


@recipe
def sd35_skip_layers() -> Case:
    net = sd3_net(num_layers=3, dual_attention_layers=(0,), qk_norm="rms_norm")
    return sd3_case(
        net=net, **sized(skip_guidance_layers=[1], skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0)
    )


@recipe
def sd3_chunked() -> Case:
    case = sd3_case(**sized(max_sequence_length=16))
    case.pipe.transformer.enable_forward_chunking(chunk_size=8, dim=1)
    return case


def flux_net(cls=diffusers.FluxTransformer2DModel, **config) -> nn.Module:
    defaults = written("flux")
    return cls(**{**defaults, **config})


def flux_case(cls=diffusers.FluxPipeline, net=None, scheduler=None, *, more=None, side: int = 16, **options) -> Case:
    parts = dict(
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(),
        vae=vae(shift_factor=0.1),
        text_encoder=clip(8),
        tokenizer=_tokenizer(),
        text_encoder_2=t5(16),
        tokenizer_2=_tokenizer(),
        transformer=net or flux_net(),
    )
    pipe = cls(**{**parts, **(more or {})})
    return Case(pipe, {"max_sequence_length": 7, "height": side, "width": side, **options}, PROMPT)


@recipe
def flux_schnell() -> Case:
    return flux_case()


@recipe
def flux_dev() -> Case:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return flux_case(net=flux_net(guidance_embeds=True), scheduler=scheduler)


@recipe
def flux_true_guidance() -> Case:
    return flux_case(true_cfg_scale=3.0, negative_prompt=["dog"])


@recipe
def flux_img2img() -> Case:
    return flux_case(diffusers.FluxImg2ImgPipeline, image=picture(side=16), strength=0.8)


@recipe
def flux_inpaint() -> Case:
    mask = (picture(1, side=16) > 0.5).float()
    return flux_case(diffusers.FluxInpaintPipeline, image=picture(side=16), mask_image=mask, strength=0.8)


@recipe
def flux_kontext() -> Case:
    return flux_case(
        diffusers.FluxKontextPipeline,
        image=picture(side=16),
        max_area=256,
        true_cfg_scale=3.0,
        negative_prompt=["dog"],
        _auto_resize=False,
    )


@recipe
def flux_fill() -> Case:
    mask = (picture(1, side=16) > 0.5).float()
    net = flux_net(in_channels=16 + 16 + 4, out_channels=16, guidance_embeds=True)
    return flux_case(diffusers.FluxFillPipeline, net, image=picture(side=16), mask_image=mask)


@recipe
def flux_control() -> Case:
    net = flux_net(in_channels=32, out_channels=16)
    return flux_case(diffusers.FluxControlPipeline, net, control_image=picture(side=16))


@recipe
def flux_controlnet() -> Case:
    control = diffusers.FluxControlNetModel(**written("flux_controlnet"))
    return flux_case(
        diffusers.FluxControlNetPipeline,
        more={"controlnet": control},
        control_image=picture(side=16),
        true_cfg_scale=3.0,
        negative_prompt=["dog"],
    )


@recipe
def aura_flow() -> Case:
    net = diffusers.AuraFlowTransformer2DModel(**written("aura_flow"))
    pipe = diffusers.AuraFlowPipeline(None, None, vae(), net, FlowMatchEulerDiscreteScheduler())
    return Case(pipe, sized(prompt=None, **masked(16), guidance_scale=3.0))


def sana_net(**config) -> nn.Module:
    defaults = written("sana")
    return diffusers.SanaTransformer2DModel(**{**defaults, **config})


@recipe
def sana() -> Case:
    pipe = diffusers.SanaPipeline(None, None, None, sana_net(), FlowMatchEulerDiscreteScheduler())
    return Case(
        pipe,
        dict(
            height=256, width=256, **masked(8), guidance_scale=3.0, use_resolution_binning=False, negative_prompt=None
        ),
    )


@recipe
def sana_sprint() -> Case:
    net = sana_net(guidance_embeds=True, qk_norm="rms_norm_across_heads")
    pipe = diffusers.SanaSprintPipeline(None, None, None, net, diffusers.SCMScheduler())
    options = dict(height=256, width=256, use_resolution_binning=False, intermediate_timesteps=None)
    return Case(pipe, {**options, **masked(8, both=False)})


@recipe
def lumina() -> Case:
    net = diffusers.LuminaNextDiT2DModel(**written("lumina"))
    pipe = diffusers.LuminaPipeline(net, FlowMatchEulerDiscreteScheduler(), vae(), None, None)
    return Case(pipe, dict(height=16, width=16, **masked(8, dtype=torch.long), guidance_scale=3.0))


@recipe
def lumina2() -> Case:
    net = diffusers.Lumina2Transformer2DModel(**written("lumina2"))
    pipe = diffusers.Lumina2Pipeline(net, FlowMatchEulerDiscreteScheduler(), vae(), None, None)
    return Case(pipe, dict(height=16, width=16, **masked(8, dtype=torch.bool), guidance_scale=3.0))


@recipe
def hunyuan_dit() -> Case:
    net = diffusers.HunyuanDiT2DModel(**written("hunyuan_dit"))
    eightfold = AutoencoderKL(**written("hunyuan_dit_1"))
    pipe = diffusers.HunyuanDiTPipeline(
        eightfold, None, None, net, diffusers.DDPMScheduler(), None, None, requires_safety_checker=False
    )
    second = {key.replace("embeds", "embeds_2").replace("mask", "mask_2"): value for key, value in masked(8).items()}
    return Case(
        pipe, dict(height=64, width=64, **masked(8), **second, use_resolution_binning=False, guidance_scale=3.0)
    )


@recipe
def cogview3() -> Case:
    net = diffusers.CogView3PlusTransformer2DModel(**written("cogview3"))
    pipe = diffusers.CogView3PlusPipeline(None, None, vae(), net, diffusers.CogVideoXDDIMScheduler())
    return Case(pipe, sized(prompt_embeds=tokens(8), negative_prompt_embeds=tokens(8), guidance_scale=3.0))


@recipe
def cogview4() -> Case:
    net = diffusers.CogView4Transformer2DModel(**written("cogview4"))
    scheduler = FlowMatchEulerDiscreteScheduler(base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True)
    pipe = diffusers.CogView4Pipeline(None, None, vae(), net, scheduler)
    return Case(
        pipe, dict(height=16, width=16, prompt_embeds=tokens(8), negative_prompt_embeds=tokens(8), guidance_scale=3.0)
    )


@recipe
def cogvideo() -> Case:
    net = diffusers.CogVideoXTransformer3DModel(**written("cogvideo"))
    pipe = diffusers.CogVideoXPipeline(None, None, None, net, DDIMScheduler())
    return Case(
        pipe,
        dict(
            height=16,
            width=16,
            num_frames=8,
            prompt_embeds=tokens(8),
            negative_prompt_embeds=tokens(8),
            guidance_scale=3.0,
        ),
    )


@recipe
def latte() -> Case:
    net = diffusers.LatteTransformer3DModel(**written("latte"))
    pipe = diffusers.LattePipeline(_tokenizer(), t5(), vae(), net, DDIMScheduler())
    return Case(pipe, sized(video_length=2, clean_caption=False, guidance_scale=3.0), PROMPT)


@recipe
def ltx() -> Case:
    net = diffusers.LTXVideoTransformer3DModel(**written("ltx"))
    pipe = diffusers.LTXPipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, net)
    return Case(pipe, dict(height=64, width=64, num_frames=9, guidance_scale=3.0, **masked(16, dtype=torch.bool)))


def wan_net() -> nn.Module:
    return diffusers.WanTransformer3DModel(**written("wan"))


def wan_case(**parts) -> Case:
    pipe = diffusers.WanPipeline(
        None,
        None,
        None,
        diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        **parts,
    )
    options = dict(height=64, width=64, num_frames=5, guidance_scale=3.0)
    return Case(pipe, {**options, "prompt_embeds": tokens(8), "negative_prompt_embeds": tokens(8)})


@recipe
def wan() -> Case:
    return wan_case(transformer=wan_net())


@recipe
def wan_two_denoisers() -> Case:
    return wan_case(transformer=wan_net(), transformer_2=wan_net(), boundary_ratio=0.875)


@recipe
def hunyuan_video() -> Case:
    net = diffusers.HunyuanVideoTransformer3DModel(**written("hunyuan_video"))
    pipe = diffusers.HunyuanVideoPipeline(None, None, net, None, FlowMatchEulerDiscreteScheduler(), None, None)
    return Case(
        pipe,
        dict(
            height=64,
            width=64,
            num_frames=5,
            prompt_embeds=tokens(16),
            pooled_prompt_embeds=torch.randn(1, 8),
            prompt_attention_mask=torch.ones(1, 5, dtype=torch.long),
        ),
    )


@recipe
def mochi() -> Case:
    net = diffusers.MochiTransformer3DModel(**written("mochi"))
    pipe = diffusers.MochiPipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, net)
    return Case(pipe, dict(height=32, width=32, num_frames=7, guidance_scale=3.0, **masked(16, dtype=torch.bool)))


@recipe
def allegro() -> Case:
    net = diffusers.AllegroTransformer3DModel(**written("allegro"))
    pipe = diffusers.AllegroPipeline(None, None, vae3d_like(), net, DDIMScheduler())
    return Case(
        pipe,
        dict(
            height=16,
            width=16,
            num_frames=8,
            guidance_scale=3.0,
            **masked(24, dtype=torch.bool),
            prompt=None,
            negative_prompt=None,
        ),
    )


def vae3d_like() -> nn.Module:
    return diffusers.AutoencoderKLAllegro(**written("vae3d_like"))


@recipe
def qwen_image() -> Case:
    net = diffusers.QwenImageTransformer2DModel(**written("qwen_image"))
    pipe = diffusers.QwenImagePipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, net)
    return Case(
        pipe,
        dict(
            height=64,
            width=64,
            true_cfg_scale=3.0,
            negative_prompt=None,
            **masked(16, mask="prompt_embeds_mask", dtype=torch.long, both=False),
            negative_prompt_embeds=tokens(16),
            negative_prompt_embeds_mask=torch.ones(1, 5, dtype=torch.long),
        ),
    )


@recipe
def chroma() -> Case:
    net = diffusers.ChromaTransformer2DModel(**written("chroma"))
    pipe = diffusers.ChromaPipeline(FlowMatchEulerDiscreteScheduler(), vae(), None, None, net)
    return Case(pipe, dict(height=16, width=16, guidance_scale=3.0, **masked(32)))


@recipe
def stable_audio() -> Case:
    net = diffusers.StableAudioDiTModel(**written("stable_audio"))
    from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel

    oobleck = diffusers.AutoencoderOobleck(**CONFIGS["stable_audio_1"])
    projection = StableAudioProjectionModel(text_encoder_dim=8, conditioning_dim=4, min_value=0, max_value=32)
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(
        solver_order=2, prediction_type="v_prediction", sigma_data=1.0, sigma_schedule="exponential"
    )
    pipe = diffusers.StableAudioPipeline(oobleck, t5(8), projection, _tokenizer(), net, scheduler)
    return Case(pipe, {"audio_end_in_s": 1.0, "guidance_scale": 3.0}, PROMPT)


@recipe
def z_image() -> Case:
    net = diffusers.ZImageTransformer2DModel(**written("z_image"))
    pipe = diffusers.ZImagePipeline(FlowMatchEulerDiscreteScheduler(), vae(shift_factor=0.1), None, None, net)
    return Case(
        pipe,
        dict(
            height=16,
            width=16,
            guidance_scale=3.0,
            prompt_embeds=[torch.randn(5, 16)],
            negative_prompt_embeds=[torch.randn(5, 16)],
        ),
    )


@recipe
def bria() -> Case:
    net = diffusers.BriaTransformer2DModel(**written("bria"))
    pipe = diffusers.BriaPipeline(net, FlowMatchEulerDiscreteScheduler(), vae(shift_factor=0.1), t5(16), _tokenizer())
    return Case(pipe, dict(height=16, width=16, guidance_scale=3.0, max_sequence_length=7), PROMPT)


@recipe
def flux2() -> Case:
    net = diffusers.Flux2Transformer2DModel(**written("flux2"))
    autoencoder = diffusers.AutoencoderKLFlux2(**written("flux2_1"))
    pipe = diffusers.Flux2Pipeline(FlowMatchEulerDiscreteScheduler(), autoencoder, None, None, net)
    return Case(pipe, dict(height=16, width=16, prompt_embeds=tokens(16), guidance_scale=3.0))


@recipe
def prx() -> Case:
    net = diffusers.PRXTransformer2DModel(**written("prx"))
    pipe = diffusers.PRXPipeline(net, FlowMatchEulerDiscreteScheduler(), None, None, vae())
    return Case(pipe, sized(**masked(8, dtype=torch.bool), guidance_scale=3.0, use_resolution_binning=False))


@recipe
def kandinsky5() -> Case:
    net = diffusers.Kandinsky5Transformer3DModel(**written("kandinsky5"))
    pipe = diffusers.Kandinsky5T2VPipeline(net, None, None, None, None, None, FlowMatchEulerDiscreteScheduler())
    lengths = torch.tensor([0, 5], dtype=torch.int32)
    return Case(
        pipe,
        dict(
            height=64,
            width=64,
            num_frames=5,
            guidance_scale=3.0,
            prompt_embeds_qwen=tokens(16),
            prompt_embeds_clip=torch.randn(1, 8),
            negative_prompt_embeds_qwen=tokens(16),
            negative_prompt_embeds_clip=torch.randn(1, 8),
            prompt_cu_seqlens=lengths,
            negative_prompt_cu_seqlens=lengths,
        ),
    )


@recipe
def amused() -> Case:
    net = diffusers.UVit2DModel(**written("amused"))
    vq = VQModel(**written("amused_1"))
    pipe = diffusers.AmusedPipeline(vq, _tokenizer(), clip(8, 8), net, diffusers.AmusedScheduler(mask_token_id=31))
    return Case(pipe, sized(guidance_scale=3.0, temperature=(2, 0)), PROMPT, output={"output_type": "latent"})
