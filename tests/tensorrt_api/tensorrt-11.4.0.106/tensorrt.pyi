# mypy: ignore-errors
# tensorrt 11.4.0.106: signatures from its own bindings, written by tools/tensorrt_api/make_stubs.py.
from __future__ import annotations

import collections.abc
import typing

import numpy
import typing_extensions

__version__: str

class DataType:
    BF16: typing.ClassVar[DataType]
    BOOL: typing.ClassVar[DataType]
    E8M0: typing.ClassVar[DataType]
    FLOAT: typing.ClassVar[DataType]
    FP4: typing.ClassVar[DataType]
    FP8: typing.ClassVar[DataType]
    HALF: typing.ClassVar[DataType]
    INT32: typing.ClassVar[DataType]
    INT4: typing.ClassVar[DataType]
    INT64: typing.ClassVar[DataType]
    INT8: typing.ClassVar[DataType]
    UINT8: typing.ClassVar[DataType]
    __members__: typing.ClassVar[dict[str, DataType]]

    def __init__(self, value: int) -> None:
        ...

    def __int__(self) -> int:
        ...

    def __str__(self) -> str:
        ...

    @property
    def itemsize(self):
        ...

    @property
    def name(self) -> str:
        ...

    @property
    def value(self) -> int:
        ...

class Dims:
    MAX_DIMS: typing.ClassVar[int] = 8
    __hash__: typing.ClassVar[None] = None

    @typing.overload
    def __getitem__(self, arg0: int) -> int:
        ...

    @typing.overload
    def __getitem__(self, arg0: slice) -> tuple:
        ...

    @typing.overload
    def __init__(self) -> None:
        ...

    @typing.overload
    def __init__(self, shape: collections.abc.Sequence[int]) -> None:
        ...

    def __len__(self) -> int:
        ...

    @typing.overload
    def __setitem__(self, arg0: int, arg1: int) -> None:
        ...

    @typing.overload
    def __setitem__(self, arg0: slice, arg1: Dims) -> None:
        ...

    def __str__(self) -> str:
        ...

class IHostMemory:

    @staticmethod
    def __enter__(this):
        ...

    @staticmethod
    def __exit__(this, exc_type, exc_value, traceback):
        ...

    def __del__(self) -> None:
        ...

    @property
    def dtype(self) -> DataType:
        ...

    @property
    def nbytes(self) -> int:
        ...

class LayerType:
    ACTIVATION: typing.ClassVar[LayerType]
    ASSERTION: typing.ClassVar[LayerType]
    ATTENTION_INPUT: typing.ClassVar[LayerType]
    ATTENTION_OUTPUT: typing.ClassVar[LayerType]
    CAST: typing.ClassVar[LayerType]
    CONCATENATION: typing.ClassVar[LayerType]
    CONDITION: typing.ClassVar[LayerType]
    CONDITIONAL_INPUT: typing.ClassVar[LayerType]
    CONDITIONAL_OUTPUT: typing.ClassVar[LayerType]
    CONSTANT: typing.ClassVar[LayerType]
    CONVOLUTION: typing.ClassVar[LayerType]
    CUMULATIVE: typing.ClassVar[LayerType]
    DECONVOLUTION: typing.ClassVar[LayerType]
    DEQUANTIZE: typing.ClassVar[LayerType]
    DIST_COLLECTIVE: typing.ClassVar[LayerType]
    DYNAMIC_QUANTIZE: typing.ClassVar[LayerType]
    EINSUM: typing.ClassVar[LayerType]
    ELEMENTWISE: typing.ClassVar[LayerType]
    FILL: typing.ClassVar[LayerType]
    GATHER: typing.ClassVar[LayerType]
    GRID_SAMPLE: typing.ClassVar[LayerType]
    IDENTITY: typing.ClassVar[LayerType]
    ITERATOR: typing.ClassVar[LayerType]
    KV_CACHE_UPDATE: typing.ClassVar[LayerType]
    LOOP_OUTPUT: typing.ClassVar[LayerType]
    LRN: typing.ClassVar[LayerType]
    MATRIX_MULTIPLY: typing.ClassVar[LayerType]
    MOE: typing.ClassVar[LayerType]
    NMS: typing.ClassVar[LayerType]
    NON_ZERO: typing.ClassVar[LayerType]
    NORMALIZATION: typing.ClassVar[LayerType]
    ONE_HOT: typing.ClassVar[LayerType]
    PADDING: typing.ClassVar[LayerType]
    PARAMETRIC_RELU: typing.ClassVar[LayerType]
    PLUGIN: typing.ClassVar[LayerType]
    PLUGIN_V2: typing.ClassVar[LayerType]
    PLUGIN_V3: typing.ClassVar[LayerType]
    POOLING: typing.ClassVar[LayerType]
    QUANTIZE: typing.ClassVar[LayerType]
    RAGGED_SOFTMAX: typing.ClassVar[LayerType]
    RECURRENCE: typing.ClassVar[LayerType]
    REDUCE: typing.ClassVar[LayerType]
    RESIZE: typing.ClassVar[LayerType]
    REVERSE_SEQUENCE: typing.ClassVar[LayerType]
    ROTARY_EMBEDDING: typing.ClassVar[LayerType]
    SCALE: typing.ClassVar[LayerType]
    SCATTER: typing.ClassVar[LayerType]
    SELECT: typing.ClassVar[LayerType]
    SHAPE: typing.ClassVar[LayerType]
    SHUFFLE: typing.ClassVar[LayerType]
    SLICE: typing.ClassVar[LayerType]
    SOFTMAX: typing.ClassVar[LayerType]
    SQUEEZE: typing.ClassVar[LayerType]
    TOPK: typing.ClassVar[LayerType]
    TRIP_LIMIT: typing.ClassVar[LayerType]
    UNARY: typing.ClassVar[LayerType]
    UNSQUEEZE: typing.ClassVar[LayerType]
    __members__: typing.ClassVar[dict[str, LayerType]]

    def __init__(self, value: int) -> None:
        ...

    def __int__(self) -> int:
        ...

    def __str__(self) -> str:
        ...

    @property
    def name(self) -> str:
        ...

    @property
    def value(self) -> int:
        ...

class ITensor:
    broadcast_across_batch: bool
    location: ...
    name: str
    shape: Dims

    def get_dimension_name(self, index: int) -> str:
        ...

    def set_dimension_name(self, index: int, name: str) -> None:
        ...

    @property
    def allowed_formats(self) -> int:
        ...

    @allowed_formats.setter
    def allowed_formats(self, arg1: int) -> None:
        ...

    @property
    def dtype(self) -> DataType:
        ...

    @property
    def is_execution_tensor(self) -> bool:
        ...

    @property
    def is_network_input(self) -> bool:
        ...

    @property
    def is_network_output(self) -> bool:
        ...

    @property
    def is_shape_tensor(self) -> bool:
        ...

class ILayer:
    metadata: str
    name: str

    def get_input(self, index: int) -> ITensor:
        ...

    def get_output(self, index: int) -> ITensor:
        ...

    def get_output_type(self, index: int) -> DataType:
        ...

    def set_input(self, index: int, tensor: ITensor) -> None:
        ...

    @property
    def num_inputs(self) -> int:
        ...

    @property
    def num_outputs(self) -> int:
        ...

    @property
    def num_ranks(self) -> int:
        ...

    @num_ranks.setter
    def num_ranks(self, arg1: int) -> None:
        ...

    @property
    def type(self) -> LayerType:
        ...

class INetworkDefinition:
    error_recorder: ...
    name: str

    @staticmethod
    def __enter__(this):
        ...

    @staticmethod
    def __exit__(this, exc_type, exc_value, traceback):
        ...

    def __del__(self) -> None:
        ...

    def __getitem__(self, arg0: int) -> ILayer:
        ...

    def __len__(self) -> int:
        ...

    def add_activation(self, input: ITensor, type: ActivationType) -> IActivationLayer:
        ...

    def add_assertion(self, condition: ITensor, message: str) -> IAssertionLayer:
        ...

    def add_attention(self, query: ITensor, key: ITensor, value: ITensor, norm_op: AttentionNormalizationOp, causal: bool) -> IAttention:
        ...

    def add_attention_v2(self, query: ITensor, key: ITensor, value: ITensor, norm_op: AttentionNormalizationOp, causal_kind: CausalMaskKind) -> IAttention:
        ...

    def add_cast(self, input: ITensor, to_type: DataType) -> ICastLayer:
        ...

    def add_concatenation(self, inputs: collections.abc.Sequence[ITensor]) -> IConcatenationLayer:
        ...

    def add_constant(self, shape: Dims, weights: Weights) -> IConstantLayer:
        ...

    def add_convolution_nd(self, input: ITensor, num_output_maps: int, kernel_shape: Dims, kernel: Weights, bias: Weights=...) -> IConvolutionLayer:
        ...

    def add_cumulative(self, input: ITensor, axis: ITensor, op: CumulativeOperation, exclusive: bool, reverse: bool) -> ICumulativeLayer:
        ...

    def add_deconvolution_nd(self, input: ITensor, num_output_maps: int, kernel_shape: Dims, kernel: Weights, bias: Weights=...) -> IDeconvolutionLayer:
        ...

    def add_dequantize(self, input: ITensor, scale: ITensor, output_type: DataType) -> IDequantizeLayer:
        ...

    def add_dist_collective(self, input: ITensor, dist_collective_op: CollectiveOperation, reduce_op: typing.Any, root: typing.Any, groups: typing.Any) -> IDistCollectiveLayer:
        ...

    def add_dynamic_quantize(self, input: ITensor, axis: int, block_size: int, output_type: DataType, scale_type: DataType) -> IDynamicQuantizeLayer:
        ...

    def add_dynamic_quantize_v2(self, input: ITensor, block_shape: Dims, output_type: DataType, scale_type: DataType) -> IDynamicQuantizeLayer:
        ...

    def add_einsum(self, inputs: collections.abc.Sequence[ITensor], equation: str) -> IEinsumLayer:
        ...

    def add_elementwise(self, input1: ITensor, input2: ITensor, op: ElementWiseOperation) -> IElementWiseLayer:
        ...

    def add_fill(self, shape: Dims, op: FillOperation, output_type: DataType=...) -> IFillLayer:
        ...

    def add_gather(self, input: ITensor, indices: ITensor, axis: int) -> IGatherLayer:
        ...

    def add_gather_v2(self, input: ITensor, indices: ITensor, mode: GatherMode) -> IGatherLayer:
        ...

    def add_grid_sample(self, input: ITensor, grid: ITensor) -> IGridSampleLayer:
        ...

    def add_identity(self, input: ITensor) -> IIdentityLayer:
        ...

    def add_if_conditional(self) -> IIfConditional:
        ...

    def add_input(self, name: str, dtype: DataType, shape: Dims) -> ITensor:
        ...

    def add_kv_cache_update(self, cache: ITensor, update: ITensor, write_indices: ITensor, cache_mode: KVCacheMode) -> IKVCacheUpdateLayer:
        ...

    def add_loop(self) -> ILoop:
        ...

    def add_lrn(self, input: ITensor, window: int, alpha: typing.SupportsFloat, beta: typing.SupportsFloat, k: typing.SupportsFloat) -> ILRNLayer:
        ...

    def add_matrix_multiply(self, input0: ITensor, op0: MatrixOperation, input1: ITensor, op1: MatrixOperation) -> IMatrixMultiplyLayer:
        ...

    def add_moe(self, hidden_states: ITensor, selected_experts_for_tokens: ITensor, scores_for_selected_experts: ITensor) -> IMoELayer:
        ...

    @typing.overload
    def add_nms(self, boxes: ITensor, scores: ITensor, max_output_boxes_per_class: ITensor) -> INMSLayer:
        ...

    @typing.overload
    def add_nms(self, boxes: ITensor, scores: ITensor, max_output_boxes_per_class: ITensor, indices_type: DataType) -> INMSLayer:
        ...

    @typing.overload
    def add_non_zero(self, input: ITensor) -> INonZeroLayer:
        ...

    @typing.overload
    def add_non_zero(self, input: ITensor, indices_type: DataType) -> INonZeroLayer:
        ...

    def add_normalization(self, input: ITensor, scale: ITensor, bias: ITensor, axesMask: int) -> INormalizationLayer:
        ...

    def add_normalization_v2(self, input: ITensor, scale: ITensor, bias: ITensor, axesMask: int) -> INormalizationLayer:
        ...

    def add_one_hot(self, indices: ITensor, values: ITensor, depth: ITensor, axis: int) -> IOneHotLayer:
        ...

    def add_padding_nd(self, input: ITensor, pre_padding: Dims, post_padding: Dims) -> IPaddingLayer:
        ...

    def add_parametric_relu(self, input: ITensor, slopes: ITensor) -> IParametricReLULayer:
        ...

    @typing.overload
    def add_plugin(self, tuple: tuple) -> IPluginV3Layer:
        ...

    @typing.overload
    def add_plugin(self, func: collections.abc.Callable) -> IPluginV3Layer:
        ...

    @typing.overload
    def add_plugin(self, func: collections.abc.Callable, aot: bool) -> IPluginV3Layer:
        ...

    def add_plugin_v2(self, inputs: collections.abc.Sequence[ITensor], plugin: IPluginV2) -> IPluginV2Layer:
        ...

    def add_plugin_v3(self, inputs: collections.abc.Sequence[ITensor], shape_inputs: collections.abc.Sequence[ITensor], plugin: IPluginV3) -> IPluginV3Layer:
        ...

    def add_pooling_nd(self, input: ITensor, type: PoolingType, window_size: Dims) -> IPoolingLayer:
        ...

    def add_quantize(self, input: ITensor, scale: ITensor, output_type: DataType) -> IQuantizeLayer:
        ...

    def add_ragged_softmax(self, input: ITensor, bounds: ITensor) -> IRaggedSoftMaxLayer:
        ...

    def add_reduce(self, input: ITensor, op: ReduceOperation, axes: int, keep_dims: bool) -> IReduceLayer:
        ...

    def add_resize(self, input: ITensor) -> IResizeLayer:
        ...

    def add_reverse_sequence(self, input: ITensor, sequence_lens: ITensor) -> IReverseSequenceLayer:
        ...

    def add_rotary_embedding(self, input: ITensor, cos_cache: ITensor, sin_cache: ITensor, interleaved: bool, rotary_embedding_dim: int) -> IRotaryEmbeddingLayer:
        ...

    def add_scale(self, input: ITensor, mode: ScaleMode, shift: Weights=..., scale: Weights=..., power: Weights=...) -> IScaleLayer:
        ...

    def add_scale_nd(*arguments, **keywords) -> IScaleLayer:
        ...

    def add_scatter(self, data: ITensor, indices: ITensor, updates: ITensor, mode: ScatterMode) -> IScatterLayer:
        ...

    def add_select(self, condition: ITensor, then_input: ITensor, else_input: ITensor) -> ISelectLayer:
        ...

    def add_shape(self, input: ITensor) -> IShapeLayer:
        ...

    def add_shuffle(self, input: ITensor) -> IShuffleLayer:
        ...

    def add_slice(self, input: ITensor, start: Dims, shape: Dims, stride: Dims) -> ISliceLayer:
        ...

    def add_softmax(self, input: ITensor) -> ISoftMaxLayer:
        ...

    def add_squeeze(self, input: ITensor, axes: ITensor=...) -> ISqueezeLayer:
        ...

    @typing.overload
    def add_topk(self, input: ITensor, op: TopKOperation, k: int, axes: int) -> ITopKLayer:
        ...

    @typing.overload
    def add_topk(self, input: ITensor, op: TopKOperation, k: int, axes: int, indices_type: DataType) -> ITopKLayer:
        ...

    def add_unary(self, input: ITensor, op: UnaryOperation) -> IUnaryLayer:
        ...

    def add_unsqueeze(self, input: ITensor, axes: ITensor) -> IUnsqueezeLayer:
        ...

    def are_weights_marked_refittable(self, name: str) -> bool:
        ...

    def get_flag(self, flag: ...) -> bool:
        ...

    def get_input(self, index: int) -> ITensor:
        ...

    def get_layer(self, index: int) -> ILayer:
        ...

    def get_output(self, index: int) -> ITensor:
        ...

    def is_debug_tensor(self, tensor: ITensor) -> bool:
        ...

    def mark_debug(self, tensor: ITensor) -> bool:
        ...

    def mark_output(self, tensor: ITensor) -> None:
        ...

    def mark_output_for_shapes(self, tensor: ITensor) -> bool:
        ...

    def mark_unfused_tensors_as_debug_tensors(self) -> bool:
        ...

    def mark_weights_refittable(self, name: str) -> bool:
        ...

    def remove_tensor(self, tensor: ITensor) -> None:
        ...

    def set_weights_name(self, weights: Weights, name: str) -> bool:
        ...

    def unmark_debug(self, tensor: ITensor) -> bool:
        ...

    def unmark_output(self, tensor: ITensor) -> None:
        ...

    def unmark_output_for_shapes(self, tensor: ITensor) -> bool:
        ...

    def unmark_unfused_tensors_as_debug_tensors(self) -> bool:
        ...

    def unmark_weights_refittable(self, name: str) -> bool:
        ...

    @property
    def builder(self) -> ...:
        ...

    @property
    def flags(self) -> int:
        ...

    @property
    def has_implicit_batch_dimension(self) -> bool:
        ...

    @property
    def num_inputs(self) -> int:
        ...

    @property
    def num_layers(self) -> int:
        ...

    @property
    def num_outputs(self) -> int:
        ...

class ILogger:

    class Severity:
        ERROR: typing.ClassVar[ILogger.Severity]
        INFO: typing.ClassVar[ILogger.Severity]
        INTERNAL_ERROR: typing.ClassVar[ILogger.Severity]
        VERBOSE: typing.ClassVar[ILogger.Severity]
        WARNING: typing.ClassVar[ILogger.Severity]
        __members__: typing.ClassVar[dict[str, ILogger.Severity]]

        def __ge__(self, other: typing.Any) -> bool:
            ...

        def __gt__(self, other: typing.Any) -> bool:
            ...

        def __init__(self, value: int) -> None:
            ...

        def __int__(self) -> int:
            ...

        def __le__(self, other: typing.Any) -> bool:
            ...

        def __lt__(self, other: typing.Any) -> bool:
            ...

        def __str__(self) -> str:
            ...

        @property
        def name(self) -> str:
            ...

        @property
        def value(self) -> int:
            ...
    ERROR: typing.ClassVar[ILogger.Severity]
    INFO: typing.ClassVar[ILogger.Severity]
    INTERNAL_ERROR: typing.ClassVar[ILogger.Severity]
    VERBOSE: typing.ClassVar[ILogger.Severity]
    WARNING: typing.ClassVar[ILogger.Severity]

    @staticmethod
    def __enter__(this):
        ...

    @staticmethod
    def __exit__(this, exc_type, exc_value, traceback):
        ...

    def __init__(self) -> None:
        ...

    def log(self, severity: ILogger.Severity, msg: str) -> None:
        ...

class IOptimizationProfile:

    def __bool__(self) -> bool:
        ...

    def __nonzero__(self) -> bool:
        ...

    def get_shape(self, input: str) -> list[Dims]:
        ...

    def get_shape_input(self, input: str) -> list[list[int]]:
        ...

    def set_shape(self, input: str, min: Dims, opt: Dims, max: Dims) -> None:
        ...

    def set_shape_input(self, input: str, min: collections.abc.Sequence[int], opt: collections.abc.Sequence[int], max: collections.abc.Sequence[int]) -> None:
        ...

    @property
    def extra_memory_target(self) -> float:
        ...

    @extra_memory_target.setter
    def extra_memory_target(self, arg1: typing.SupportsFloat) -> bool:
        ...

    @property
    def profile_stream(self) -> int:
        ...

    @profile_stream.setter
    def profile_stream(self, arg1: int) -> None:
        ...

class IProgressMonitor:

    def __init__(self) -> None:
        ...

    def phase_finish(self, phase_name: str) -> None:
        ...

    def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
        ...

    def step_complete(self, phase_name: str, step: int) -> bool:
        ...

class ExecutionContextAllocationStrategy:
    ON_PROFILE_CHANGE: typing.ClassVar[ExecutionContextAllocationStrategy]
    STATIC: typing.ClassVar[ExecutionContextAllocationStrategy]
    USER_MANAGED: typing.ClassVar[ExecutionContextAllocationStrategy]
    __members__: typing.ClassVar[dict[str, ExecutionContextAllocationStrategy]]

    def __ge__(self, other: typing.Any) -> bool:
        ...

    def __gt__(self, other: typing.Any) -> bool:
        ...

    def __init__(self, value: int) -> None:
        ...

    def __int__(self) -> int:
        ...

    def __le__(self, other: typing.Any) -> bool:
        ...

    def __lt__(self, other: typing.Any) -> bool:
        ...

    def __str__(self) -> str:
        ...

    @property
    def name(self) -> str:
        ...

    @property
    def value(self) -> int:
        ...

class IRuntimeConfig:

    def get_execution_context_allocation_strategy(self) -> ExecutionContextAllocationStrategy:
        ...

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy=...) -> None:
        ...

class IExecutionContext:
    debug_sync: bool
    enqueue_emits_profile: bool
    error_recorder: IErrorRecorder
    name: str
    nvtx_verbosity: ...
    profiler: IProfiler
    temporary_allocator: ...
    unfused_tensors_debug_state: bool

    @staticmethod
    def __enter__(this):
        ...

    @staticmethod
    def __exit__(this, exc_type, exc_value, traceback):
        ...

    def __del__(self) -> None:
        ...

    def execute_async_v3(self, stream_handle: int) -> bool:
        ...

    def execute_v2(self, bindings: collections.abc.Sequence[int]) -> bool:
        ...

    def get_debug_listener(self) -> IDebugListener:
        ...

    def get_debug_state(self, name: str) -> bool:
        ...

    def get_input_consumed_event(self) -> int:
        ...

    def get_max_output_size(self, name: str) -> int:
        ...

    def get_output_allocator(self, name: str) -> IOutputAllocator:
        ...

    def get_runtime_config(self) -> IRuntimeConfig:
        ...

    def get_tensor_address(self, name: str) -> int:
        ...

    def get_tensor_shape(self, name: str) -> Dims:
        ...

    def get_tensor_strides(self, name: str) -> Dims:
        ...

    def infer_shapes(self) -> list[str]:
        ...

    def report_to_profiler(self) -> bool:
        ...

    def set_all_tensors_debug_state(self, flag: bool) -> bool:
        ...

    def set_aux_streams(self, aux_streams: collections.abc.Sequence[int]) -> None:
        ...

    def set_communicator(self, communicator: typing_extensions.CapsuleType) -> bool:
        ...

    def set_debug_listener(self, listener: IDebugListener) -> bool:
        ...

    def set_device_memory(self, memory: int, size: int) -> None:
        ...

    def set_input_consumed_event(self, event: int) -> bool:
        ...

    @typing.overload
    def set_input_shape(self, name: str, shape: tuple) -> bool:
        ...

    @typing.overload
    def set_input_shape(self, name: str, shape: list) -> bool:
        ...

    @typing.overload
    def set_input_shape(self, name: str, shape: Dims) -> bool:
        ...

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        ...

    def set_output_allocator(self, name: str, output_allocator: IOutputAllocator) -> bool:
        ...

    def set_tensor_address(self, name: str, memory: int) -> bool:
        ...

    def set_tensor_debug_state(self, name: str, flag: bool) -> bool:
        ...

    def update_device_memory_size_for_shapes(self) -> int:
        ...

    @property
    def active_optimization_profile(self) -> int:
        ...

    @property
    def all_binding_shapes_specified(self) -> bool:
        ...

    @property
    def engine(self) -> ...:
        ...

    @property
    def persistent_cache_limit(self) -> int:
        ...

    @persistent_cache_limit.setter
    def persistent_cache_limit(self, arg1: int) -> None:
        ...

class LayerInformationFormat:
    JSON: typing.ClassVar[LayerInformationFormat]
    ONELINE: typing.ClassVar[LayerInformationFormat]
    __members__: typing.ClassVar[dict[str, LayerInformationFormat]]

    def __init__(self, value: int) -> None:
        ...

    def __int__(self) -> int:
        ...

    def __str__(self) -> str:
        ...

    @property
    def name(self) -> str:
        ...

    @property
    def value(self) -> int:
        ...

class EngineInspector:
    error_recorder: IErrorRecorder
    execution_context: IExecutionContext

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        ...

    def get_layer_information(self, layer_index: int, format: LayerInformationFormat) -> str:
        ...

class ICudaEngine:
    error_recorder: IErrorRecorder

    @staticmethod
    def __enter__(this):
        ...

    @staticmethod
    def __exit__(this, exc_type, exc_value, traceback):
        ...

    def __del__(self) -> None:
        ...

    def __getitem__(self, arg0: int) -> str:
        ...

    def create_engine_inspector(self) -> EngineInspector:
        ...

    @typing.overload
    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy=...) -> IExecutionContext:
        ...

    @typing.overload
    def create_execution_context(self, runtime_config: IRuntimeConfig=...) -> IExecutionContext:
        ...

    def create_runtime_config(self) -> IRuntimeConfig:
        ...

    def create_serialization_config(self) -> ISerializationConfig:
        ...

    def get_aliased_input_tensor(self, name: str) -> str:
        ...

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        ...

    def get_engine_stat(self, stat: EngineStat=...) -> int:
        ...

    @typing.overload
    def get_tensor_bytes_per_component(self, name: str) -> int:
        ...

    @typing.overload
    def get_tensor_bytes_per_component(self, name: str, profile_index: int) -> int:
        ...

    @typing.overload
    def get_tensor_components_per_element(self, name: str) -> int:
        ...

    @typing.overload
    def get_tensor_components_per_element(self, name: str, profile_index: int) -> int:
        ...

    def get_tensor_dtype(self, name: str) -> DataType:
        ...

    @typing.overload
    def get_tensor_format(self, name: str) -> TensorFormat:
        ...

    @typing.overload
    def get_tensor_format(self, name: str, profile_index: int) -> TensorFormat:
        ...

    @typing.overload
    def get_tensor_format_desc(self, name: str) -> str:
        ...

    @typing.overload
    def get_tensor_format_desc(self, name: str, profile_index: int) -> str:
        ...

    def get_tensor_location(self, name: str) -> TensorLocation:
        ...

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        ...

    def get_tensor_name(self, index: int) -> str:
        ...

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        ...

    def get_tensor_profile_values(self, name: int, profile_index: str) -> list[list[int]]:
        ...

    def get_tensor_shape(self, name: str) -> Dims:
        ...

    @typing.overload
    def get_tensor_vectorized_dim(self, name: str) -> int:
        ...

    @typing.overload
    def get_tensor_vectorized_dim(self, name: str, profile_index: int) -> int:
        ...

    def get_weight_streaming_automatic_budget(self) -> int:
        ...

    def is_debug_tensor(self, name: str) -> bool:
        ...

    def is_shape_inference_io(self, name: str) -> bool:
        ...

    def serialize(self) -> IHostMemory:
        ...

    def serialize_with_config(self, arg0: ISerializationConfig) -> IHostMemory:
        ...

    @property
    def device_memory_size_v2(self) -> int:
        ...

    @property
    def engine_capability(self) -> EngineCapability:
        ...

    @property
    def hardware_compatibility_level(self) -> ...:
        ...

    @property
    def name(self) -> str:
        ...

    @property
    def num_aux_streams(self) -> int:
        ...

    @property
    def num_io_tensors(self) -> int:
        ...

    @property
    def num_layers(self) -> int:
        ...

    @property
    def num_optimization_profiles(self) -> int:
        ...

    @property
    def profiling_verbosity(self) -> ...:
        ...

    @property
    def refittable(self) -> bool:
        ...

    @property
    def streamable_weights_size(self) -> int:
        ...

    @property
    def tactic_sources(self) -> int:
        ...

    @property
    def weight_streaming_budget_v2(self) -> int:
        ...

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, arg1: int) -> bool:
        ...

    @property
    def weight_streaming_scratch_memory_size(self) -> int:
        ...

class BuilderFlag:
    DEBUG: typing.ClassVar[BuilderFlag]
    DIRECT_IO: typing.ClassVar[BuilderFlag]
    DISABLE_COMPILATION_CACHE: typing.ClassVar[BuilderFlag]
    DISABLE_TIMING_CACHE: typing.ClassVar[BuilderFlag]
    DISTRIBUTIVE_INDEPENDENCE: typing.ClassVar[BuilderFlag]
    EDITABLE_TIMING_CACHE: typing.ClassVar[BuilderFlag]
    ERROR_ON_TIMING_CACHE_MISS: typing.ClassVar[BuilderFlag]
    EXCLUDE_LEAN_RUNTIME: typing.ClassVar[BuilderFlag]
    GPU_FALLBACK: typing.ClassVar[BuilderFlag]
    MONITOR_MEMORY: typing.ClassVar[BuilderFlag]
    REFIT: typing.ClassVar[BuilderFlag]
    REFIT_IDENTICAL: typing.ClassVar[BuilderFlag]
    REFIT_INDIVIDUAL: typing.ClassVar[BuilderFlag]
    SAFETY_SCOPE: typing.ClassVar[BuilderFlag]
    SPARSE_WEIGHTS: typing.ClassVar[BuilderFlag]
    STRICT_NANS: typing.ClassVar[BuilderFlag]
    STRIP_PLAN: typing.ClassVar[BuilderFlag]
    TF32: typing.ClassVar[BuilderFlag]
    VERSION_COMPATIBLE: typing.ClassVar[BuilderFlag]
    WEIGHT_STREAMING: typing.ClassVar[BuilderFlag]
    __members__: typing.ClassVar[dict[str, BuilderFlag]]

    def __ge__(self, other: typing.Any) -> bool:
        ...

    def __gt__(self, other: typing.Any) -> bool:
        ...

    def __init__(self, value: int) -> None:
        ...

    def __int__(self) -> int:
        ...

    def __le__(self, other: typing.Any) -> bool:
        ...

    def __lt__(self, other: typing.Any) -> bool:
        ...

    def __str__(self) -> str:
        ...

    @property
    def name(self) -> str:
        ...

    @property
    def value(self) -> int:
        ...

class MemoryPoolType:
    DLA_GLOBAL_DRAM: typing.ClassVar[MemoryPoolType]
    DLA_LOCAL_DRAM: typing.ClassVar[MemoryPoolType]
    DLA_MANAGED_SRAM: typing.ClassVar[MemoryPoolType]
    TACTIC_DRAM: typing.ClassVar[MemoryPoolType]
    TACTIC_SHARED_MEMORY: typing.ClassVar[MemoryPoolType]
    WORKSPACE: typing.ClassVar[MemoryPoolType]
    __members__: typing.ClassVar[dict[str, MemoryPoolType]]

    def __init__(self, value: int) -> None:
        ...

    def __int__(self) -> int:
        ...

    def __str__(self) -> str:
        ...

    @property
    def name(self) -> str:
        ...

    @property
    def value(self) -> int:
        ...

class ProfilingVerbosity:
    DETAILED: typing.ClassVar[ProfilingVerbosity]
    LAYER_NAMES_ONLY: typing.ClassVar[ProfilingVerbosity]
    NONE: typing.ClassVar[ProfilingVerbosity]
    __members__: typing.ClassVar[dict[str, ProfilingVerbosity]]

    def __init__(self, value: int) -> None:
        ...

    def __int__(self) -> int:
        ...

    def __str__(self) -> str:
        ...

    @property
    def name(self) -> str:
        ...

    @property
    def value(self) -> int:
        ...

class ITimingCache:

    def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool:
        ...

    def query(self, key: TimingCacheKey) -> TimingCacheValue:
        ...

    def queryKeys(self) -> list[TimingCacheKey]:
        ...

    def reset(self) -> bool:
        ...

    def serialize(self) -> IHostMemory:
        ...

    def update(self, key: TimingCacheKey, value: TimingCacheValue) -> bool:
        ...

class IBuilderConfig:
    build_route: str
    default_device_type: DeviceType
    engine_capability: EngineCapability
    hardware_compatibility_level: HardwareCompatibilityLevel
    profiling_verbosity: ProfilingVerbosity
    progress_monitor: IProgressMonitor
    remote_auto_tuning_config: str
    runtime_platform: RuntimePlatform
    tiling_optimization_level: TilingOptimizationLevel

    @staticmethod
    def __enter__(this):
        ...

    @staticmethod
    def __exit__(this, exc_type, exc_value, traceback):
        ...

    def __del__(self) -> None:
        ...

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        ...

    def can_run_on_DLA(self, layer: ILayer) -> bool:
        ...

    def clear_flag(self, flag: BuilderFlag) -> None:
        ...

    def create_timing_cache(self, serialized_timing_cache: typing_extensions.Buffer) -> ITimingCache:
        ...

    def get_device_type(self, layer: ILayer) -> DeviceType:
        ...

    def get_flag(self, flag: BuilderFlag) -> bool:
        ...

    def get_memory_pool_limit(self, pool: MemoryPoolType) -> int:
        ...

    def get_preview_feature(self, feature: PreviewFeature) -> bool:
        ...

    def get_tactic_sources(self) -> int:
        ...

    def get_timing_cache(self) -> ITimingCache:
        ...

    def is_device_type_set(self, layer: ILayer) -> bool:
        ...

    def reset(self) -> None:
        ...

    def reset_device_type(self, layer: ILayer) -> None:
        ...

    def set_device_type(self, layer: ILayer, device_type: DeviceType) -> None:
        ...

    def set_flag(self, flag: BuilderFlag) -> None:
        ...

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        ...

    def set_preview_feature(self, feature: PreviewFeature, enable: bool) -> None:
        ...

    def set_tactic_sources(self, tactic_sources: int) -> bool:
        ...

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        ...

    @property
    def DLA_core(self) -> int:
        ...

    @DLA_core.setter
    def DLA_core(self, arg1: int) -> None:
        ...

    @property
    def all_build_routes(self) -> str:
        ...

    @property
    def avg_timing_iterations(self) -> int:
        ...

    @avg_timing_iterations.setter
    def avg_timing_iterations(self, arg1: int) -> None:
        ...

    @property
    def builder_optimization_level(self) -> int:
        ...

    @builder_optimization_level.setter
    def builder_optimization_level(self, arg1: int) -> None:
        ...

    @property
    def flags(self) -> int:
        ...

    @flags.setter
    def flags(self, arg1: int) -> None:
        ...

    @property
    def l2_limit_for_tiling(self) -> int:
        ...

    @l2_limit_for_tiling.setter
    def l2_limit_for_tiling(self, arg1: int) -> bool:
        ...

    @property
    def max_aux_streams(self) -> int:
        ...

    @max_aux_streams.setter
    def max_aux_streams(self, arg1: int) -> bool:
        ...

    @property
    def max_num_tactics(self) -> int:
        ...

    @max_num_tactics.setter
    def max_num_tactics(self, arg1: int) -> None:
        ...

    @property
    def num_optimization_profiles(self) -> int:
        ...

    @property
    def plugins_to_serialize(self) -> list[str]:
        ...

    @plugins_to_serialize.setter
    def plugins_to_serialize(self, arg1: collections.abc.Sequence[str]) -> None:
        ...

    @property
    def profile_stream(self) -> int:
        ...

    @profile_stream.setter
    def profile_stream(self, arg1: int) -> None:
        ...

class NetworkDefinitionCreationFlag:
    PREFER_AOT_PYTHON_PLUGINS: typing.ClassVar[NetworkDefinitionCreationFlag]
    PREFER_JIT_PYTHON_PLUGINS: typing.ClassVar[NetworkDefinitionCreationFlag]
    STRONGLY_TYPED: typing.ClassVar[NetworkDefinitionCreationFlag]
    __members__: typing.ClassVar[dict[str, NetworkDefinitionCreationFlag]]

    def __ge__(self, other: typing.Any) -> bool:
        ...

    def __gt__(self, other: typing.Any) -> bool:
        ...

    def __init__(self, value: int) -> None:
        ...

    def __int__(self) -> int:
        ...

    def __le__(self, other: typing.Any) -> bool:
        ...

    def __lt__(self, other: typing.Any) -> bool:
        ...

    def __str__(self) -> str:
        ...

    @property
    def name(self) -> str:
        ...

    @property
    def value(self) -> int:
        ...

class Builder:
    error_recorder: IErrorRecorder

    @staticmethod
    def __enter__(this):
        ...

    @staticmethod
    def __exit__(this, exc_type, exc_value, traceback):
        ...

    def __del__(self) -> None:
        ...

    def __init__(self, logger: ILogger) -> None:
        ...

    def build_engine_with_config(self, network: INetworkDefinition, config: IBuilderConfig) -> ICudaEngine:
        ...

    @typing.overload
    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory:
        ...

    @typing.overload
    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig, kernel_text: typing.Any) -> IHostMemory:
        ...

    def build_serialized_network_to_stream(self, network: INetworkDefinition, config: IBuilderConfig, writer: IStreamWriter) -> bool:
        ...

    def create_builder_config(self) -> IBuilderConfig:
        ...

    def create_network(self, flags: int=...) -> INetworkDefinition:
        ...

    def create_optimization_profile(self) -> IOptimizationProfile:
        ...

    def get_plugin_registry(self) -> IPluginRegistry:
        ...

    def is_network_supported(self, network: INetworkDefinition, config: IBuilderConfig) -> bool:
        ...

    def reset(self) -> None:
        ...

    @property
    def logger(self) -> ILogger:
        ...

    @property
    def max_DLA_batch_size(self) -> int:
        ...

    @property
    def max_threads(self) -> int:
        ...

    @max_threads.setter
    def max_threads(self, arg1: int) -> bool:
        ...

    @property
    def num_DLA_cores(self) -> int:
        ...

class Runtime:
    dla_workspace_allocation_strategy: DLAWorkspaceAllocationStrategy
    engine_host_code_allowed: bool
    error_recorder: IErrorRecorder
    temporary_directory: str

    @staticmethod
    def __enter__(this):
        ...

    @staticmethod
    def __exit__(this, exc_type, exc_value, traceback):
        ...

    def __del__(self) -> None:
        ...

    def __init__(self, logger: ILogger) -> None:
        ...

    @typing.overload
    def deserialize_cuda_engine(self, serialized_engine: typing_extensions.Buffer) -> ICudaEngine:
        ...

    @typing.overload
    def deserialize_cuda_engine(self, stream_reader_v2: IStreamReaderV2) -> ICudaEngine:
        ...

    def get_plugin_registry(self) -> IPluginRegistry:
        ...

    def load_runtime(self, path: str) -> Runtime:
        ...

    @property
    def DLA_core(self) -> int:
        ...

    @DLA_core.setter
    def DLA_core(self, arg1: int) -> None:
        ...

    @property
    def logger(self) -> ILogger:
        ...

    @property
    def max_threads(self) -> int:
        ...

    @max_threads.setter
    def max_threads(self, arg1: int) -> bool:
        ...

    @property
    def num_DLA_cores(self) -> int:
        ...

    @property
    def tempfile_control_flags(self) -> int:
        ...

    @tempfile_control_flags.setter
    def tempfile_control_flags(self, arg1: int) -> None:
        ...

class Refitter:
    error_recorder: IErrorRecorder
    weights_validation: bool

    def __del__(self) -> None:
        ...

    def __init__(self, engine: ICudaEngine, logger: ILogger) -> None:
        ...

    def get_all(self) -> tuple[list[str], list[WeightsRole]]:
        ...

    def get_all_weights(self) -> list[str]:
        ...

    def get_missing(self) -> tuple[list[str], list[WeightsRole]]:
        ...

    def get_missing_weights(self) -> list[str]:
        ...

    def get_named_weights(self, weights_name: str) -> Weights:
        ...

    def get_weights_location(self, weights_name: str) -> TensorLocation:
        ...

    def get_weights_prototype(self, weights_name: str) -> Weights:
        ...

    def refit_cuda_engine(self) -> bool:
        ...

    def refit_cuda_engine_async(self, stream_handle: int) -> bool:
        ...

    def release_refit_resources(self) -> bool:
        ...

    @typing.overload
    def set_named_weights(self, name: str, weights: Weights) -> bool:
        ...

    @typing.overload
    def set_named_weights(self, name: str, weights: Weights, location: TensorLocation) -> bool:
        ...

    def set_weights(self, layer_name: str, role: WeightsRole, weights: Weights) -> bool:
        ...

    def unset_named_weights(self, weights_name: str) -> bool:
        ...

    @property
    def logger(self) -> ILogger:
        ...

    @property
    def max_threads(self) -> int:
        ...

    @max_threads.setter
    def max_threads(self, arg1: int) -> bool:
        ...

class OnnxParser:

    @staticmethod
    def __enter__(this):
        ...

    @staticmethod
    def __exit__(this, exc_type, exc_value, traceback):
        ...

    def __del__(self) -> None:
        ...

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        ...

    def clear_errors(self) -> None:
        ...

    def clear_flag(self, flag: ...) -> None:
        ...

    def get_error(self, index: int) -> ...:
        ...

    def get_flag(self, flag: ...) -> bool:
        ...

    def get_layer_output_tensor(self, name: str, i: int) -> ITensor:
        ...

    def get_subgraph_nodes(self, index: int) -> list:
        ...

    def get_used_vc_plugin_libraries(self) -> list[str]:
        ...

    def is_subgraph_supported(self, index: int) -> bool:
        ...

    def load_initializer(self, name: str, data: int, size: int) -> bool:
        ...

    def load_model_proto(self, model: typing_extensions.Buffer, path: str=...) -> bool:
        ...

    def parse(self, model: typing_extensions.Buffer, path: str=...) -> bool:
        ...

    def parse_from_file(self, model: str) -> bool:
        ...

    def parse_model_proto(self) -> bool:
        ...

    def set_builder_config(self, builder_config: IBuilderConfig) -> bool:
        ...

    def set_flag(self, flag: ...) -> None:
        ...

    def supports_model_v2(self, model: typing_extensions.Buffer, path: str=...) -> bool:
        ...

    def supports_operator(self, op_name: str) -> bool:
        ...

    @property
    def flags(self) -> int:
        ...

    @flags.setter
    def flags(self, arg1: int) -> None:
        ...

    @property
    def num_errors(self) -> int:
        ...

    @property
    def num_subgraphs(self) -> int:
        ...

class ParserError:

    def __str__(self) -> str:
        ...

    def code(self) -> ErrorCode:
        ...

    def desc(self) -> str:
        ...

    def file(self) -> str:
        ...

    def func(self) -> str:
        ...

    def line(self) -> int:
        ...

    def local_function_stack(self) -> list[str]:
        ...

    def local_function_stack_size(self) -> int:
        ...

    def node(self) -> int:
        ...

    def node_name(self) -> str:
        ...

    def node_operator(self) -> str:
        ...

class OnnxParserRefitter:

    def __init__(self, refitter: Refitter, logger: ILogger) -> None:
        ...

    def clear_errors(self) -> None:
        ...

    def get_error(self, index: int) -> ParserError:
        ...

    def load_initializer(self, name: str, data: int, size: int) -> bool:
        ...

    def load_model_proto(self, model: typing_extensions.Buffer, path: str=...) -> bool:
        ...

    def refit_from_bytes(self, model: typing_extensions.Buffer, path: str=...) -> bool:
        ...

    def refit_from_file(self, model: str) -> bool:
        ...

    def refit_model_proto(self) -> bool:
        ...

    @property
    def num_errors(self) -> int:
        ...

def nptype(trt_type):
    ...
