from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InsertWorkerPayloadRequest(_message.Message):
    __slots__ = ("sender", "worker_data_bundle")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    WORKER_DATA_BUNDLE_FIELD_NUMBER: _ClassVar[int]
    sender: str
    worker_data_bundle: InputWorkerDataBundle
    def __init__(self, sender: _Optional[str] = ..., worker_data_bundle: _Optional[_Union[InputWorkerDataBundle, _Mapping]] = ...) -> None: ...

class InputWorkerDataBundle(_message.Message):
    __slots__ = ("worker", "nonce", "topic_id", "inference_forecasts_bundle", "inferences_forecasts_bundle_signature", "pubkey")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_FORECASTS_BUNDLE_FIELD_NUMBER: _ClassVar[int]
    INFERENCES_FORECASTS_BUNDLE_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    PUBKEY_FIELD_NUMBER: _ClassVar[int]
    worker: str
    nonce: Nonce
    topic_id: int
    inference_forecasts_bundle: InputInferenceForecastBundle
    inferences_forecasts_bundle_signature: bytes
    pubkey: str
    def __init__(self, worker: _Optional[str] = ..., nonce: _Optional[_Union[Nonce, _Mapping]] = ..., topic_id: _Optional[int] = ..., inference_forecasts_bundle: _Optional[_Union[InputInferenceForecastBundle, _Mapping]] = ..., inferences_forecasts_bundle_signature: _Optional[bytes] = ..., pubkey: _Optional[str] = ...) -> None: ...

class Nonce(_message.Message):
    __slots__ = ("block_height",)
    BLOCK_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    block_height: int
    def __init__(self, block_height: _Optional[int] = ...) -> None: ...

class InputInferenceForecastBundle(_message.Message):
    __slots__ = ("inference", "forecast")
    INFERENCE_FIELD_NUMBER: _ClassVar[int]
    FORECAST_FIELD_NUMBER: _ClassVar[int]
    inference: InputInference
    forecast: InputForecast
    def __init__(self, inference: _Optional[_Union[InputInference, _Mapping]] = ..., forecast: _Optional[_Union[InputForecast, _Mapping]] = ...) -> None: ...

class InputInference(_message.Message):
    __slots__ = ("topic_id", "block_height", "inferer", "value", "extra_data", "proof", "values")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    INFERER_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    EXTRA_DATA_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    topic_id: int
    block_height: int
    inferer: str
    value: str
    extra_data: bytes
    proof: str
    values: _containers.RepeatedCompositeFieldContainer[InputLabeledValue]
    def __init__(self, topic_id: _Optional[int] = ..., block_height: _Optional[int] = ..., inferer: _Optional[str] = ..., value: _Optional[str] = ..., extra_data: _Optional[bytes] = ..., proof: _Optional[str] = ..., values: _Optional[_Iterable[_Union[InputLabeledValue, _Mapping]]] = ...) -> None: ...

class InputLabeledValue(_message.Message):
    __slots__ = ("label", "value")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    label: str
    value: str
    def __init__(self, label: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class InputForecast(_message.Message):
    __slots__ = ("topic_id", "block_height", "forecaster", "forecast_elements", "extra_data")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    FORECASTER_FIELD_NUMBER: _ClassVar[int]
    FORECAST_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    EXTRA_DATA_FIELD_NUMBER: _ClassVar[int]
    topic_id: int
    block_height: int
    forecaster: str
    forecast_elements: _containers.RepeatedCompositeFieldContainer[InputForecastElement]
    extra_data: bytes
    def __init__(self, topic_id: _Optional[int] = ..., block_height: _Optional[int] = ..., forecaster: _Optional[str] = ..., forecast_elements: _Optional[_Iterable[_Union[InputForecastElement, _Mapping]]] = ..., extra_data: _Optional[bytes] = ...) -> None: ...

class InputForecastElement(_message.Message):
    __slots__ = ("inferer", "value")
    INFERER_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    inferer: str
    value: str
    def __init__(self, inferer: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("sender", "topic_id", "owner", "is_reputer")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    IS_REPUTER_FIELD_NUMBER: _ClassVar[int]
    sender: str
    topic_id: int
    owner: str
    is_reputer: bool
    def __init__(self, sender: _Optional[str] = ..., topic_id: _Optional[int] = ..., owner: _Optional[str] = ..., is_reputer: bool = ...) -> None: ...

class GetParamsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetParamsResponse(_message.Message):
    __slots__ = ("params",)
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    params: Params
    def __init__(self, params: _Optional[_Union[Params, _Mapping]] = ...) -> None: ...

class Params(_message.Message):
    __slots__ = ("max_top_inferers_to_reward", "registration_fee", "data_sending_fee")
    MAX_TOP_INFERERS_TO_REWARD_FIELD_NUMBER: _ClassVar[int]
    REGISTRATION_FEE_FIELD_NUMBER: _ClassVar[int]
    DATA_SENDING_FEE_FIELD_NUMBER: _ClassVar[int]
    max_top_inferers_to_reward: int
    registration_fee: str
    data_sending_fee: str
    def __init__(self, max_top_inferers_to_reward: _Optional[int] = ..., registration_fee: _Optional[str] = ..., data_sending_fee: _Optional[str] = ...) -> None: ...

class GetNextTopicIdRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetNextTopicIdResponse(_message.Message):
    __slots__ = ("next_topic_id",)
    NEXT_TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    next_topic_id: int
    def __init__(self, next_topic_id: _Optional[int] = ...) -> None: ...

class GetTopicRequest(_message.Message):
    __slots__ = ("topic_id",)
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    topic_id: int
    def __init__(self, topic_id: _Optional[int] = ...) -> None: ...

class GetTopicResponse(_message.Message):
    __slots__ = ("topic", "weight", "effective_revenue", "topic_stake")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_REVENUE_FIELD_NUMBER: _ClassVar[int]
    TOPIC_STAKE_FIELD_NUMBER: _ClassVar[int]
    topic: Topic
    weight: str
    effective_revenue: str
    topic_stake: str
    def __init__(self, topic: _Optional[_Union[Topic, _Mapping]] = ..., weight: _Optional[str] = ..., effective_revenue: _Optional[str] = ..., topic_stake: _Optional[str] = ...) -> None: ...

class Topic(_message.Message):
    __slots__ = ("id", "creator", "metadata", "loss_method", "epoch_last_ended", "epoch_length", "ground_truth_lag", "allow_negative", "worker_submission_window", "merit_sortition_alpha")
    ID_FIELD_NUMBER: _ClassVar[int]
    CREATOR_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    LOSS_METHOD_FIELD_NUMBER: _ClassVar[int]
    EPOCH_LAST_ENDED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_LENGTH_FIELD_NUMBER: _ClassVar[int]
    GROUND_TRUTH_LAG_FIELD_NUMBER: _ClassVar[int]
    ALLOW_NEGATIVE_FIELD_NUMBER: _ClassVar[int]
    WORKER_SUBMISSION_WINDOW_FIELD_NUMBER: _ClassVar[int]
    MERIT_SORTITION_ALPHA_FIELD_NUMBER: _ClassVar[int]
    id: int
    creator: str
    metadata: str
    loss_method: str
    epoch_last_ended: int
    epoch_length: int
    ground_truth_lag: int
    allow_negative: bool
    worker_submission_window: int
    merit_sortition_alpha: str
    def __init__(self, id: _Optional[int] = ..., creator: _Optional[str] = ..., metadata: _Optional[str] = ..., loss_method: _Optional[str] = ..., epoch_last_ended: _Optional[int] = ..., epoch_length: _Optional[int] = ..., ground_truth_lag: _Optional[int] = ..., allow_negative: bool = ..., worker_submission_window: _Optional[int] = ..., merit_sortition_alpha: _Optional[str] = ...) -> None: ...

class TopicExistsRequest(_message.Message):
    __slots__ = ("topic_id",)
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    topic_id: int
    def __init__(self, topic_id: _Optional[int] = ...) -> None: ...

class TopicExistsResponse(_message.Message):
    __slots__ = ("exists",)
    EXISTS_FIELD_NUMBER: _ClassVar[int]
    exists: bool
    def __init__(self, exists: bool = ...) -> None: ...

class IsTopicActiveRequest(_message.Message):
    __slots__ = ("topic_id",)
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    topic_id: int
    def __init__(self, topic_id: _Optional[int] = ...) -> None: ...

class IsTopicActiveResponse(_message.Message):
    __slots__ = ("is_active",)
    IS_ACTIVE_FIELD_NUMBER: _ClassVar[int]
    is_active: bool
    def __init__(self, is_active: bool = ...) -> None: ...

class Nonces(_message.Message):
    __slots__ = ("nonces",)
    NONCES_FIELD_NUMBER: _ClassVar[int]
    nonces: _containers.RepeatedCompositeFieldContainer[Nonce]
    def __init__(self, nonces: _Optional[_Iterable[_Union[Nonce, _Mapping]]] = ...) -> None: ...

class GetUnfulfilledWorkerNoncesRequest(_message.Message):
    __slots__ = ("topic_id",)
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    topic_id: int
    def __init__(self, topic_id: _Optional[int] = ...) -> None: ...

class GetUnfulfilledWorkerNoncesResponse(_message.Message):
    __slots__ = ("nonces",)
    NONCES_FIELD_NUMBER: _ClassVar[int]
    nonces: Nonces
    def __init__(self, nonces: _Optional[_Union[Nonces, _Mapping]] = ...) -> None: ...

class GetOpenWorkerSubmissionWindowsRequest(_message.Message):
    __slots__ = ("topic_id",)
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    topic_id: int
    def __init__(self, topic_id: _Optional[int] = ...) -> None: ...

class GetOpenWorkerSubmissionWindowsResponse(_message.Message):
    __slots__ = ("nonces",)
    NONCES_FIELD_NUMBER: _ClassVar[int]
    nonces: Nonces
    def __init__(self, nonces: _Optional[_Union[Nonces, _Mapping]] = ...) -> None: ...

class IsWorkerNonceUnfulfilledRequest(_message.Message):
    __slots__ = ("topic_id", "block_height")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    topic_id: int
    block_height: int
    def __init__(self, topic_id: _Optional[int] = ..., block_height: _Optional[int] = ...) -> None: ...

class IsWorkerNonceUnfulfilledResponse(_message.Message):
    __slots__ = ("is_worker_nonce_unfulfilled",)
    IS_WORKER_NONCE_UNFULFILLED_FIELD_NUMBER: _ClassVar[int]
    is_worker_nonce_unfulfilled: bool
    def __init__(self, is_worker_nonce_unfulfilled: bool = ...) -> None: ...

class IsWorkerRegisteredInTopicIdRequest(_message.Message):
    __slots__ = ("topic_id", "address")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    topic_id: int
    address: str
    def __init__(self, topic_id: _Optional[int] = ..., address: _Optional[str] = ...) -> None: ...

class IsWorkerRegisteredInTopicIdResponse(_message.Message):
    __slots__ = ("is_registered",)
    IS_REGISTERED_FIELD_NUMBER: _ClassVar[int]
    is_registered: bool
    def __init__(self, is_registered: bool = ...) -> None: ...

class CanSubmitWorkerPayloadRequest(_message.Message):
    __slots__ = ("topic_id", "address")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    topic_id: int
    address: str
    def __init__(self, topic_id: _Optional[int] = ..., address: _Optional[str] = ...) -> None: ...

class CanSubmitWorkerPayloadResponse(_message.Message):
    __slots__ = ("can_submit_worker_payload",)
    CAN_SUBMIT_WORKER_PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    can_submit_worker_payload: bool
    def __init__(self, can_submit_worker_payload: bool = ...) -> None: ...

class GetInfererScoreEmaRequest(_message.Message):
    __slots__ = ("topic_id", "inferer")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    INFERER_FIELD_NUMBER: _ClassVar[int]
    topic_id: int
    inferer: str
    def __init__(self, topic_id: _Optional[int] = ..., inferer: _Optional[str] = ...) -> None: ...

class GetInfererScoreEmaResponse(_message.Message):
    __slots__ = ("score",)
    SCORE_FIELD_NUMBER: _ClassVar[int]
    score: Score
    def __init__(self, score: _Optional[_Union[Score, _Mapping]] = ...) -> None: ...

class GetCurrentLowestInfererScoreRequest(_message.Message):
    __slots__ = ("topic_id",)
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    topic_id: int
    def __init__(self, topic_id: _Optional[int] = ...) -> None: ...

class GetCurrentLowestInfererScoreResponse(_message.Message):
    __slots__ = ("score",)
    SCORE_FIELD_NUMBER: _ClassVar[int]
    score: Score
    def __init__(self, score: _Optional[_Union[Score, _Mapping]] = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("topic_id", "block_height", "address", "score")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    topic_id: int
    block_height: int
    address: str
    score: str
    def __init__(self, topic_id: _Optional[int] = ..., block_height: _Optional[int] = ..., address: _Optional[str] = ..., score: _Optional[str] = ...) -> None: ...

class GetWorkerLatestInferenceByTopicIdRequest(_message.Message):
    __slots__ = ("topic_id", "worker_address")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    topic_id: int
    worker_address: str
    def __init__(self, topic_id: _Optional[int] = ..., worker_address: _Optional[str] = ...) -> None: ...

class GetWorkerLatestInferenceByTopicIdResponse(_message.Message):
    __slots__ = ("latest_inference",)
    LATEST_INFERENCE_FIELD_NUMBER: _ClassVar[int]
    latest_inference: Inference
    def __init__(self, latest_inference: _Optional[_Union[Inference, _Mapping]] = ...) -> None: ...

class GetWorkerLatestInputInferenceByTopicIdRequest(_message.Message):
    __slots__ = ("topic_id", "worker_address")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    topic_id: int
    worker_address: str
    def __init__(self, topic_id: _Optional[int] = ..., worker_address: _Optional[str] = ...) -> None: ...

class GetWorkerLatestInputInferenceByTopicIdResponse(_message.Message):
    __slots__ = ("latest_input_inference",)
    LATEST_INPUT_INFERENCE_FIELD_NUMBER: _ClassVar[int]
    latest_input_inference: InputInference
    def __init__(self, latest_input_inference: _Optional[_Union[InputInference, _Mapping]] = ...) -> None: ...

class GetInferencesAtBlockRequest(_message.Message):
    __slots__ = ("topic_id", "block_height")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    topic_id: int
    block_height: int
    def __init__(self, topic_id: _Optional[int] = ..., block_height: _Optional[int] = ...) -> None: ...

class GetInferencesAtBlockResponse(_message.Message):
    __slots__ = ("inferences",)
    INFERENCES_FIELD_NUMBER: _ClassVar[int]
    inferences: Inferences
    def __init__(self, inferences: _Optional[_Union[Inferences, _Mapping]] = ...) -> None: ...

class Inferences(_message.Message):
    __slots__ = ("inferences",)
    INFERENCES_FIELD_NUMBER: _ClassVar[int]
    inferences: _containers.RepeatedCompositeFieldContainer[Inference]
    def __init__(self, inferences: _Optional[_Iterable[_Union[Inference, _Mapping]]] = ...) -> None: ...

class Inference(_message.Message):
    __slots__ = ("topic_id", "block_height", "inferer", "value", "extra_data", "proof", "values")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    INFERER_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    EXTRA_DATA_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    topic_id: int
    block_height: int
    inferer: str
    value: str
    extra_data: bytes
    proof: str
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, topic_id: _Optional[int] = ..., block_height: _Optional[int] = ..., inferer: _Optional[str] = ..., value: _Optional[str] = ..., extra_data: _Optional[bytes] = ..., proof: _Optional[str] = ..., values: _Optional[_Iterable[str]] = ...) -> None: ...

class GetLatestNetworkInferencesRequest(_message.Message):
    __slots__ = ("topic_id",)
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    topic_id: int
    def __init__(self, topic_id: _Optional[int] = ...) -> None: ...

class GetLatestNetworkInferencesResponse(_message.Message):
    __slots__ = ("network_inferences", "inference_block_height")
    NETWORK_INFERENCES_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_BLOCK_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    network_inferences: NetworkInferenceBundle
    inference_block_height: int
    def __init__(self, network_inferences: _Optional[_Union[NetworkInferenceBundle, _Mapping]] = ..., inference_block_height: _Optional[int] = ...) -> None: ...

class NetworkInferenceBundle(_message.Message):
    __slots__ = ("topic_id", "nonce", "combined_value", "inferer_values", "naive_value")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    COMBINED_VALUE_FIELD_NUMBER: _ClassVar[int]
    INFERER_VALUES_FIELD_NUMBER: _ClassVar[int]
    NAIVE_VALUE_FIELD_NUMBER: _ClassVar[int]
    topic_id: int
    nonce: int
    combined_value: _containers.RepeatedCompositeFieldContainer[LabeledValue]
    inferer_values: _containers.RepeatedCompositeFieldContainer[WorkerInference]
    naive_value: _containers.RepeatedCompositeFieldContainer[LabeledValue]
    def __init__(self, topic_id: _Optional[int] = ..., nonce: _Optional[int] = ..., combined_value: _Optional[_Iterable[_Union[LabeledValue, _Mapping]]] = ..., inferer_values: _Optional[_Iterable[_Union[WorkerInference, _Mapping]]] = ..., naive_value: _Optional[_Iterable[_Union[LabeledValue, _Mapping]]] = ...) -> None: ...

class WorkerInference(_message.Message):
    __slots__ = ("worker", "values")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    worker: str
    values: _containers.RepeatedCompositeFieldContainer[LabeledValue]
    def __init__(self, worker: _Optional[str] = ..., values: _Optional[_Iterable[_Union[LabeledValue, _Mapping]]] = ...) -> None: ...

class LabeledValue(_message.Message):
    __slots__ = ("label_id", "label_name", "value")
    LABEL_ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    label_id: int
    label_name: str
    value: str
    def __init__(self, label_id: _Optional[int] = ..., label_name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class GetLatestNetworkInferencesResponseV9(_message.Message):
    __slots__ = ("network_inferences", "inference_block_height")
    NETWORK_INFERENCES_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_BLOCK_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    network_inferences: ValueBundle
    inference_block_height: int
    def __init__(self, network_inferences: _Optional[_Union[ValueBundle, _Mapping]] = ..., inference_block_height: _Optional[int] = ...) -> None: ...

class ValueBundle(_message.Message):
    __slots__ = ("topic_id", "combined_value", "inferer_values", "naive_value")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    COMBINED_VALUE_FIELD_NUMBER: _ClassVar[int]
    INFERER_VALUES_FIELD_NUMBER: _ClassVar[int]
    NAIVE_VALUE_FIELD_NUMBER: _ClassVar[int]
    topic_id: int
    combined_value: str
    inferer_values: _containers.RepeatedCompositeFieldContainer[WorkerAttributedValue]
    naive_value: str
    def __init__(self, topic_id: _Optional[int] = ..., combined_value: _Optional[str] = ..., inferer_values: _Optional[_Iterable[_Union[WorkerAttributedValue, _Mapping]]] = ..., naive_value: _Optional[str] = ...) -> None: ...

class WorkerAttributedValue(_message.Message):
    __slots__ = ("worker", "value")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    worker: str
    value: str
    def __init__(self, worker: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
