#!/usr/bin/bash
# 클러스터 환경 변수: 모든 스크립트가 이 파일을 source 합니다.

# EncryptionConfig 암호화 키 생성
export ENCRYPTION_KEY=$(head -c 32 /dev/urandom | base64)

# 각 노드의 IP
export NODE_IPS=(172.31.39.151 172.31.32.72)

# 각 IP 에 대응하는 호스트 이름 (같은 순서)
export NODE_NAMES=(
  k8s-01  # 컨트롤 플레인 겸 워커
  k8s-02
)

# etcd 클러스터
export ETCD_ENDPOINTS="https://${NODE_IPS[0]}:2379,https://${NODE_IPS[1]}:2379"
export ETCD_NODES="k8s-01=https://${NODE_IPS[0]}:2380,k8s-02=https://${NODE_IPS[1]}:2380"

# kube-apiserver 역방향 프록시 (kube-nginx) 주소
export KUBE_APISERVER="https://127.0.0.1:8443"

# 데이터 디렉토리
DATA_DIR='/data/k8s'
export ETCD_DATA_DIR="$DATA_DIR/etcd/data"
export K8S_DIR="${DATA_DIR}/k8s"
export CONTAINERD_DIR="${DATA_DIR}/containerd"

# 네트워크
SERVICE_CIDR="10.254.0.0/16"
CLUSTER_CIDR="172.30.0.0/16"
export NODE_PORT_RANGE="30000-32767"
export CLUSTER_KUBERNETES_SVC_IP="10.254.0.1"
export CLUSTER_DNS_SVC_IP="10.254.0.2"
export CLUSTER_DNS_DOMAIN="cluster.local"

export PATH=/opt/k8s/bin:$PATH
