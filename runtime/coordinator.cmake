# From the wire to the engine: the frontend knows no gRPC, the coordinator is the gRPC server.
trireme_library(trireme_frontend
  SOURCES frontend.cc frontend_check.cc record_store.cc request_record.cc stop_strings.cc
  DEPENDS trireme_tokenizer trireme_base)
trireme_library(trireme_coordinator
  SOURCES coordinator.cc coordinator_messages.cc coordinator_service.cc coordinator_status.cc
          coordinator_stream.cc listen_address.cc
  DEPENDS trireme_frontend trireme_proto gRPC::grpc++_reflection)
