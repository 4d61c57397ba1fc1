/* The part of ONNX Runtime's C interface that an operator of one's own needs, declared here because its wheel brings
 * no headers.
 *
 * The interface is versioned and only ever appended to: `GetApi(version)` answers a table of function pointers whose
 * first places are the same in every later runtime, or NULL in an older one. Places are counted from 0 in the order
 * in which the runtime's documentation lists the functions of OrtApi; the tests run every one that is named here.
 */
#ifndef HEADRACE_ONNXRUNTIME_ABI_H
#define HEADRACE_ONNXRUNTIME_ABI_H

#include <stddef.h>
#include <stdint.h>

#define ORT_VERSION_NEEDED 17 /* of the interface; of the runtime, 1.17: KernelContext_ParallelFor is the youngest */

typedef struct OrtStatus OrtStatus;
typedef struct OrtValue OrtValue;
typedef struct OrtShape OrtShape; /* OrtTensorTypeAndShapeInfo */
typedef struct OrtDomain OrtDomain; /* OrtCustomOpDomain */
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;

typedef void (*OrtFunction)(void);
typedef const OrtFunction OrtApi; /* the table's first place */

typedef struct {
    OrtApi *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} OrtApiBase;

enum { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 }; /* OrtErrorCode */
enum { ORT_FLOAT = 1, ORT_INT8 = 3, ORT_INT32 = 6 }; /* ONNXTensorElementDataType */

/* ORT_CALL(api, Name)(arguments): a function of the table by its place and type. */
#define ORT_CALL(api, name) ((Ort##name *)(api)[ORT_PLACE_##name])

enum {
    ORT_PLACE_CreateStatus = 0,
    ORT_PLACE_CreateCustomOpDomain = 26,
    ORT_PLACE_CustomOpDomain_Add = 27,
    ORT_PLACE_AddCustomOpDomain = 28,
    ORT_PLACE_GetTensorMutableData = 51,
    ORT_PLACE_GetDimensionsCount = 61,
    ORT_PLACE_GetDimensions = 62,
    ORT_PLACE_GetTensorTypeAndShape = 65,
    ORT_PLACE_KernelContext_GetInput = 90,
    ORT_PLACE_KernelContext_GetOutput = 91,
    ORT_PLACE_ReleaseTensorTypeAndShapeInfo = 99,
    ORT_PLACE_KernelContext_ParallelFor = 274,
};

typedef struct OrtCustomOp OrtCustomOp;
typedef OrtStatus *OrtCreateStatus(int code, const char *message);
typedef OrtStatus *OrtCreateCustomOpDomain(const char *name, OrtDomain **out);
typedef OrtStatus *OrtCustomOpDomain_Add(OrtDomain *domain, const OrtCustomOp *op);
typedef OrtStatus *OrtAddCustomOpDomain(OrtSessionOptions *options, OrtDomain *domain);
typedef OrtStatus *OrtGetTensorMutableData(OrtValue *value, void **out);
typedef OrtStatus *OrtGetDimensionsCount(const OrtShape *shape, size_t *out);
typedef OrtStatus *OrtGetDimensions(const OrtShape *shape, int64_t *dimensions, size_t count);
typedef OrtStatus *OrtGetTensorTypeAndShape(const OrtValue *value, OrtShape **out);
typedef OrtStatus *OrtKernelContext_GetInput(const OrtKernelContext *context, size_t index, const OrtValue **out);
typedef OrtStatus *OrtKernelContext_GetOutput(OrtKernelContext *context, size_t index, const int64_t *dimensions,
                                              size_t count, OrtValue **out);
typedef void OrtReleaseTensorTypeAndShapeInfo(OrtShape *shape);
typedef OrtStatus *OrtKernelContext_ParallelFor(const OrtKernelContext *context, void (*task)(void *, size_t),
                                                size_t num_tasks, size_t num_batches, void *data);

/* As of version 17. What is NULL is left to the runtime's default, but for the functions that have none. */
struct OrtCustomOp {
    uint32_t version;
    void *(*CreateKernel)(const OrtCustomOp *, OrtApi *, const OrtKernelInfo *);
    const char *(*GetName)(const OrtCustomOp *);
    const char *(*GetExecutionProviderType)(const OrtCustomOp *);
    int (*GetInputType)(const OrtCustomOp *, size_t);
    size_t (*GetInputTypeCount)(const OrtCustomOp *);
    int (*GetOutputType)(const OrtCustomOp *, size_t);
    size_t (*GetOutputTypeCount)(const OrtCustomOp *);
    void (*KernelCompute)(void *, OrtKernelContext *);
    void (*KernelDestroy)(void *);
    int (*GetInputCharacteristic)(const OrtCustomOp *, size_t);
    int (*GetOutputCharacteristic)(const OrtCustomOp *, size_t);
    int (*GetInputMemoryType)(const OrtCustomOp *, size_t);
    int (*GetVariadicInputMinArity)(const OrtCustomOp *);
    int (*GetVariadicInputHomogeneity)(const OrtCustomOp *);
    int (*GetVariadicOutputMinArity)(const OrtCustomOp *);
    int (*GetVariadicOutputHomogeneity)(const OrtCustomOp *);
    OrtStatus *(*CreateKernelV2)(const OrtCustomOp *, OrtApi *, const OrtKernelInfo *, void **);
    OrtStatus *(*KernelComputeV2)(void *, OrtKernelContext *);
    OrtStatus *(*InferOutputShapeFn)(const OrtCustomOp *, void *);
    int (*GetStartVersion)(const OrtCustomOp *);
    int (*GetEndVersion)(const OrtCustomOp *);
};

#endif
