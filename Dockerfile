# A CPU image of se-deploy: exports, quantizes, checks and plans ONNX files, builds TensorRT-RTX engines.
#   docker build -t se-deploy . && docker run --rm -v "$PWD:/work" se-deploy inspect net.onnx --plan
FROM python:3.12-slim
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY calibration calibration
COPY se_deploy se_deploy
RUN pip install --no-cache-dir '.[cpu,rtx,report]'
WORKDIR /work
ENTRYPOINT ["se-deploy"]
CMD ["doctor"]
