from homojl.data.datasets import ImageDataset as ImageDataset
from homojl.data.datasets import load_dataset as load_dataset
from homojl.data.registry import DatasetInfo as DatasetInfo
from homojl.data.registry import dataset_info as dataset_info
from homojl.data.registry import dataset_names as dataset_names
